"""Autoencoder, denoiser, classifiers and embedders: building, loading and using them. Nothing here trains.

Imports from `data` and the rooms above it.
"""

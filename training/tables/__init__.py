"""The results table: its rows, their names, and its figures.

Imports from `evaluation` and the rooms above it.
"""

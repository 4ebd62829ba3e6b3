"""The report of a run, and the facts of a run that cards are made of.

Imports from `tables` and the rooms above it.
"""

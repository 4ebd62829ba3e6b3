"""The report of a run.

Imports from `tables` and the rooms above it.
"""

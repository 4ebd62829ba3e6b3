"""All steps in order, skipping what is done: `histodistill distill`.

Imports from `reporting` and the rooms above it.
"""

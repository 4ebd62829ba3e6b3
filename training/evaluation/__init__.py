"""Is a set good, and is it safe: metrics of pools, comparisons, the privacy audit and attacks, with their figures.

Imports from `distillation` and the rooms above it.
"""

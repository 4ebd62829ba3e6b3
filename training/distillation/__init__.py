"""From a pool to a distilled set: selecting and merging, with the figures of both.

Imports from the scripts of `training` and the rooms above them.
"""

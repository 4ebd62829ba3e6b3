"""The web page on which a run is shown and tried.

Imports from `end_to_end` and the rooms above it.
"""

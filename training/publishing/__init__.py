"""Sending finished folders to the Hub, past the gate of the privacy audit.

Imports from `end_to_end` and the rooms above it.
"""

"""How a script runs: options, errors, files, records of what was done, presets and launching.

Imports no other room, and no torch when it is imported.
"""

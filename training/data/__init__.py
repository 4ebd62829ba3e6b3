"""Where tiles come from: sources, decoding, splits, and image datasets on disk.

Imports from `running`.
"""

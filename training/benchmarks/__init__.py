"""Measurements of speed, memory, the audit, and training at several sites.

Imports from every other room; nothing imports from here.
"""

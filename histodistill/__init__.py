"""Turns labelled histopathology tiles that may not be shared into a tiny synthetic dataset that teaches nearly as much."""

"""Turns labelled histopathology tiles that may not be shared into a tiny synthetic set that teaches nearly as much."""

from pkgutil import extend_path


# In a clone this folder shadows the installed package, which has the other parts: look for them there, too.
__path__ = extend_path(__path__, __name__)

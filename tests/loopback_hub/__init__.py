"""A Hub on this machine: speaks the HTTP protocol of huggingface.co as its clients use it, and fails on demand."""

from loopback_hub.faults import Fault
from loopback_hub.server import LoopbackHub, User


__all__ = ["Fault", "LoopbackHub", "User"]

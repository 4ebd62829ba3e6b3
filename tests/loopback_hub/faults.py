"""What may go wrong between a client and the Hub, on demand."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """One fault.

    Attributes:
        how: "cut" closes the connection before anything is done, "cut after" when all is done but nothing answered,
            "status" answers with `status`, "slow" waits `seconds` before all is done, and "hold" waits before and
            "hold after" after all is done until `release` is set, then cuts. `reached` is set when it waits.
        number: the request that meets it, counted from 1; None for every one.
        path: part of the path that a request must have to count.
        method: method that a request must have to count; None for any.
        times: how many requests in a row meet it, from `number` on.
        status: of the answer.
        headers: of the answer.
        seconds: how long to wait.
    """

    how: str
    number: int | None = None
    path: str = ""
    method: str | None = None
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 1.0
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    seen: int = 0

    def meets(self, method: str, path: str) -> bool:
        """Whether this request meets the fault; counts it."""
        if self.path not in path or self.method not in (None, method):
            return False
        self.seen += 1
        if self.number is not None and not self.number <= self.seen < self.number + self.times:
            return False
        if self.how != "hold after":
            self.reached.set()
        return True

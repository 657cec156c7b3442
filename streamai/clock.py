"""Where time comes from: only drivers ask, the engine is told."""

import time


class WallClock:
    """Nanoseconds since the epoch, and a monotonic counter for spans."""

    @staticmethod
    def now_ns() -> int:
        return time.time_ns()

    @staticmethod
    def monotonic_ns() -> int:
        return time.monotonic_ns()


class ManualClock:
    """A clock that stands still until told; for tests and the fault simulator."""

    def __init__(self, start_ns: int = 0) -> None:
        self.ns = start_ns

    def now_ns(self) -> int:
        return self.ns

    monotonic_ns = now_ns

    def advance(self, ns: int) -> None:
        self.ns += ns

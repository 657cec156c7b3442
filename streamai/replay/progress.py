"""A progress bar with events/s and the time left; plain and silent where there is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts events of one task on standard error; use as a context manager.

    total  how many there will be, None = unknown
    """

    def __init__(self, task: str, total: int | None = None) -> None:
        self.done, self._began = 0, time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} events/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not Console(stderr=True).is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(task, total=total, rate="")

    def expect(self, total: int) -> None:
        """How many there will be, once it is known."""
        self._bar.update(self._task, total=total)

    def advance(self, n: int) -> None:
        """n more events are done."""
        self.done += n
        self._bar.update(self._task, advance=n, rate=f"{self.rate:,.0f}")

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Events a second so far."""
        return self.done / max(self.seconds, 1e-9)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc) -> None:
        self._bar.stop()

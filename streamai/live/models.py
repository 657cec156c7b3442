"""The weights files that a worker serves with, watched: a good file put in a model's place is taken up.

What is served is a copy by digest (model/kept.py), so the file that was given may be written over. A bad
file is refused with its error and the model before it goes on serving.
"""

from __future__ import annotations

import logging
from pathlib import Path

from streamai.engine import check_model
from streamai.errors import StreamaiError
from streamai.flow import Flow
from streamai.model import weights
from streamai.model.kept import Kept

log = logging.getLogger("streamai.live")


class Watched:
    """One weights file, and the flow that is served with what it held last.

    flow     `given` with the copy of its model; None while there is no good file
    digest   of that model
    error    of the last look; "" after a good one
    """

    def __init__(self, given: Flow, path: str | Path, kept: Kept) -> None:
        self.given, self.path, self.kept = given, Path(path), kept
        self.flow: Flow | None = None
        self.digest = self.error = ""
        self._seen: tuple | None = None

    def start(self) -> Flow:
        """The flow of the file as it is now; ModelError if it is not good."""
        self._seen = self._stamp()
        self._take(self.kept.keep(self.path))
        return self.flow

    def look(self) -> bool:
        """Whether there is another model now. Called often: it reads the file only when its stamp moved."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return False  # gone for a moment, as while it is replaced, or the same
        self._seen, before = stamp, self.digest
        try:
            self._take(self.kept.keep(self.path))
        except StreamaiError as error:
            self.error = str(error)
            log.error("%s goes on serving model %s: %s", self.given.name, before, error)
            return False
        return self.digest != before

    def of(self, digest: str) -> Flow | None:
        """The flow with a model that was served before; None if it was not kept."""
        return self._with(self.kept.path(digest)) if self.kept.has(digest) else None

    def _take(self, copy: Path) -> None:
        flow = self._with(copy)
        check_model(flow)
        self.flow, self.digest, self.error = flow, copy.stem, ""

    def _with(self, copy: Path) -> Flow:
        return self.given.but(model=copy, output=self.given.output)

    def _stamp(self) -> tuple | None:
        try:
            s = self.path.stat()
        except OSError:
            return None
        return s.st_mtime_ns, s.st_size, s.st_ino


def as_fast(one: Flow, other: Flow) -> bool:
    """Whether two flows' models do the same work an event: equal arrays but for their numbers."""

    def form(flow: Flow) -> dict:
        model = weights.read(flow.model)
        return {name: (a.dtype.str, a.shape) for name, a in model.arrays.items()} | {"halves": model.halves}

    return form(one) == form(other)

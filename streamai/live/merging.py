"""What partitions count, exchanged by files: each writes its own, and reads and merges the others'.

    SHARED/FLOW/P.counts            own counts of partition P, the newest
    STATE/tables/DIGEST.counts      merged tables that were served with, for restarts and replays

The shared folder is one that all workers see; on one machine it lies in the state folder.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from streamai.declaration import duration_ns
from streamai.errors import ModelError, StateError
from streamai.flow import Flow
from streamai.model import merged
from streamai.settings import State

log = logging.getLogger("streamai.live")


class Merging:
    """The exchange of one flow, as one worker sees it. Files are written and read off the event loop."""

    def __init__(self, flow: Flow, settings: State) -> None:
        self.every_ns = duration_ns(flow.merge)
        self.parts = Path(settings.shared or Path(settings.folder) / "shared") / flow.name
        self.tables = Path(settings.folder) / "tables"
        self.kept_s = settings.tables_hours * 3600
        self._next_ns: dict[int, int] = {}

    def due(self, partition: int, now_ns: int) -> bool:
        """Whether it is the partition's turn; they come one after the other, from the first moment on."""
        first = self.every_ns // 4 + self.every_ns // 8 * (partition % 4)
        at = self._next_ns.setdefault(partition, now_ns + first)
        if now_ns < at:
            return False
        self._next_ns[partition] = now_ns + self.every_ns
        return True

    def exchange(self, partition: int, own: merged.Table, tau) -> merged.Table | None:
        """Put the own counts where the others find them; returns the others' merged, or None if there are
        none. The merged table is kept before it is returned. StateError if the disk takes no more."""
        try:
            own.write(self.parts / f"{partition}.counts")
            found = [self._read(p, own) for p in self._paths(partition)]
            tables = [t for t in found if t is not None]
            if not tables:
                return None
            table = merged.merge(tables, tau)
            table.write(self.tables / f"{table.digest}.counts")
            self._forget()
        except OSError as error:
            raise StateError(
                f"counts of partition {partition} cannot be exchanged: {error}. Is {self.parts} or "
                f"{self.tables} full or read-only? Serving goes on with the table before"
            ) from error
        return table

    def _paths(self, partition: int) -> list[Path]:
        """The other partitions' files in the order of partitions: a merge adds in this order."""
        paths = {int(p.stem): p for p in self.parts.glob("*.counts") if p.stem.isdigit()}
        return [paths[p] for p in sorted(paths) if p != partition]

    def _read(self, path: Path, own: merged.Table) -> merged.Table | None:
        try:
            table = merged.read(path)
        except ModelError as error:
            log.warning("left out of the merge: %s", error)
            return None
        if table.neighbours.shape[1] != own.neighbours.shape[1]:
            log.warning("left out of the merge: %s has rows of another length; is it of this flow?", path)
            return None
        return table.of_catalogue(own.ids, len(own.ids))

    def _forget(self) -> None:
        before = time.time() - self.kept_s
        for path in self.tables.glob("*.counts"):
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
            except FileNotFoundError:
                continue  # another worker was first

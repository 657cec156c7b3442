"""What served from which offset on: a recorded versions topic, and the models and tables that it names."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

from streamai.errors import InputError, ModelError
from streamai.flow import Flow
from streamai.model import merged
from streamai.model.kept import Kept
from streamai.replay.record import read_records
from streamai.wire import version


@dataclass(frozen=True)
class Served:
    """From this offset on: the flow with its model, and the other partitions' counts of this digest."""

    offset: int
    flow: Flow
    tables: str | None = None
    folder: pathlib.Path | None = None

    def others(self) -> merged.Table | None:
        """The table, read when it is needed; ModelError if it is not there."""
        return None if self.tables is None else merged.read(self.folder / f"{self.tables}.counts")


def read_versions(
    flow: Flow, recorded: str | pathlib.Path, state: str | pathlib.Path
) -> dict[int, list[Served]]:
    """What served, by partition, in the order of offsets.

    recorded  file of `streamai record FLOW.versions`; of several records of one offset the last counts
    state     a worker's state folder: models/DIGEST.weights and tables/DIGEST.counts are read

    InputError if the file is of another flow; ModelError if a model or a table is missing.
    """
    state = pathlib.Path(state)
    kept, tables = Kept(state / "models"), state / "tables"
    found: dict[int, dict[int, version.Version]] = {}
    for records in read_records(recorded):
        for value in records.values:
            at = version.decode(value)
            if at.flow != flow.name:
                raise InputError(f"{recorded} holds versions of flow {at.flow!r}, not of {flow.name!r}")
            found.setdefault(at.partition, {})[at.offset] = at
    named = [v for of in found.values() for v in of.values()]
    flows = {d: _with(flow, d, kept) for d in {v.model for v in named}}
    for digest in {v.tables for v in named if v.tables}:
        if not (tables / f"{digest}.counts").exists():
            raise ModelError(
                f"no table {digest} in {tables}; a worker keeps them for state.tables_hours. Copy the folder "
                "before, or give a longer time"
            )
    return {
        p: [Served(at, flows[v.model], v.tables, tables) for at, v in sorted(of.items())]
        for p, of in found.items()
    }


def _with(flow: Flow, digest: str, kept: Kept) -> Flow:
    return flow if flow.model is None else flow.but(model=kept.found(digest), output=flow.output)

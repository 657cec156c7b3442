"""Which model served from which offset on: a recorded versions topic, and the models that it names."""

from __future__ import annotations

import pathlib

from streamai.errors import InputError
from streamai.flow import Flow
from streamai.model.kept import Kept
from streamai.replay.record import read_records
from streamai.wire import version


def read_versions(
    flow: Flow, recorded: str | pathlib.Path, models: str | pathlib.Path
) -> dict[int, list[tuple[int, Flow]]]:
    """{partition: [(offset, flow with the model that served from there on)]} in the order of offsets.

    recorded  file of `streamai record FLOW.versions`; of several records of one offset the last counts
    models    folder of DIGEST.weights: a worker's state/models

    InputError if the file is of another flow; ModelError if a model is missing.
    """
    kept, known = Kept(models), {}
    found: dict[int, dict[int, str]] = {}
    for records in read_records(recorded):
        for value in records.values:
            at = version.decode(value)
            if at.flow != flow.name:
                raise InputError(f"{recorded} holds versions of flow {at.flow!r}, not of {flow.name!r}")
            found.setdefault(at.partition, {})[at.offset] = at.model
    for digest in {d for of in found.values() for d in of.values()}:
        known[digest] = flow.but(model=kept.found(digest), output=flow.output)
    return {p: [(at, known[of[at]]) for at in sorted(of)] for p, of in found.items()}

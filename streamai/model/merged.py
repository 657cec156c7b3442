"""Counts of several partitions as one table: what a partition knows of the others (kernels/others.py).

A table is immutable and named by its digest. Its numbers are decayed to `as_of_ns`, the newest event time in
it, so that tables of different age can be added.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from streamai.errors import ModelError
from streamai.kernels import counts as counts_kernel
from streamai.kernels import others as kernel

POPULAR = 64
_NAMES = ("neighbours", "w", "pop", "fast")
_TYPES = {"neighbours": "<i4", "w": "<f4", "pop": "<f4", "fast": "<f4"}
_MAGIC = b"streamai counts 1\n"


@dataclass(frozen=True)
class Table:
    """Counts of some events.

    ids         item ids; a row an item
    neighbours  i4[N, K] row + 1 of what follows, 0 = no more; w f4[N, K] how often, decayed to as_of_ns
    pop, fast   f4[N] how often the item came, by the slow and by the fast decay
    """

    ids: list[str]
    neighbours: np.ndarray
    w: np.ndarray
    pop: np.ndarray
    fast: np.ndarray
    as_of_ns: int

    @cached_property
    def digest(self) -> str:
        """16 hex digits of all that is in it."""
        hashed = hashlib.blake2b(f"{self.as_of_ns} {json.dumps(self.ids)}".encode(), digest_size=8)
        for name in _NAMES:
            hashed.update(np.ascontiguousarray(getattr(self, name), _TYPES[name]).tobytes())
        return hashed.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names of kernels.context.TABLES."""
        tops = {}
        for name, values in (("others_top_pop", self.pop), ("others_top_fast", self.fast)):
            tops[name] = np.zeros(POPULAR, "i4")
            counts_kernel.rebuild_popular(values, tops[name])
        return {
            "others_ids": self.neighbours, "others_w": self.w, "others_pop": self.pop,
            "others_fast": self.fast, "others_landmark": np.array([self.as_of_ns], "i8"), **tops,
        }  # fmt: skip

    def of_catalogue(self, ids: list[str], rows: int) -> Table:
        """The same counts with the rows of a catalogue, of which there may be more than items; items that it
        has not are left out."""
        if ids == self.ids:
            more = rows - len(self.pop)
            arrays = {n: getattr(self, n) for n in _NAMES}
            padded = {n: np.pad(a, [(0, more)] + [(0, 0)] * (a.ndim - 1)) for n, a in arrays.items()}
            return self if not more else Table(self.ids, as_of_ns=self.as_of_ns, **padded)
        to = {name: k for k, name in enumerate(ids)}
        where = np.array([to.get(name, -1) for name in self.ids], np.int64)
        kept = np.flatnonzero(where >= 0)
        place = np.concatenate([[0], where + 1]).astype("i4")  # of row + 1; 0 for what is gone
        n, width = rows, self.neighbours.shape[1]
        neighbours, w = np.zeros((n, width), "i4"), np.zeros((n, width), "f4")
        named = place[self.neighbours[kept]]
        front = np.argsort(named == 0, axis=1, kind="stable")  # packed again, in order
        neighbours[where[kept]] = np.take_along_axis(named, front, 1)
        w[where[kept]] = np.take_along_axis(np.where(named > 0, self.w[kept], 0), front, 1)
        pop, fast = np.zeros(n, "f4"), np.zeros(n, "f4")
        pop[where[kept]], fast[where[kept]] = self.pop[kept], self.fast[kept]
        return Table(ids, neighbours, w, pop, fast, self.as_of_ns)

    def write(self, path: str | Path) -> None:
        """The file has its name when it is whole."""
        head = {"ids": self.ids, "width": self.neighbours.shape[1], "as_of_ns": self.as_of_ns}
        text = json.dumps(head, ensure_ascii=False).encode()
        parts = [np.ascontiguousarray(getattr(self, n), _TYPES[n]).tobytes() for n in _NAMES]
        path = Path(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(b"".join([_MAGIC, len(text).to_bytes(8, "little"), text, *parts]))
        draft.replace(path)


def none() -> dict[str, np.ndarray]:
    """The arrays where there is no table."""
    return {
        "others_ids": np.zeros((0, 0), "i4"), "others_w": np.zeros((0, 0), "f4"),
        "others_pop": np.zeros(0, "f4"), "others_fast": np.zeros(0, "f4"),
        "others_top_pop": np.zeros(0, "i4"), "others_top_fast": np.zeros(0, "i4"),
        "others_landmark": np.zeros(1, "i8"),
    }  # fmt: skip


def read(path: str | Path) -> Table:
    """A table's file; ModelError if it is not whole."""
    try:
        data = Path(path).read_bytes()
        if not data.startswith(_MAGIC):
            raise ValueError(f"it begins with {data[: len(_MAGIC)]!r}")
        at = len(_MAGIC) + 8
        size = int.from_bytes(data[len(_MAGIC) : at], "little")
        head = json.loads(data[at : at + size])
        at, n, width, arrays = at + size, len(head["ids"]), int(head["width"]), {}
        for name in _NAMES:
            shape = (n, width) if name in ("neighbours", "w") else (n,)
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(data, _TYPES[name], count, at).reshape(shape).copy()
            at += 4 * count
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes too many")
        rows = arrays["neighbours"]
        if rows.size and not 0 <= rows.min() <= rows.max() <= n:
            raise ValueError("a neighbour that is no item")
        return Table(head["ids"], as_of_ns=int(head["as_of_ns"]), **arrays)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a table of counts ({error}); merge again") from error


def snapshot(ids: list[str], state: dict, landmark: int, tau: np.ndarray, as_of_ns: int) -> Table:
    """A partition's own counts of the items `ids` as of a time; state: arrays of kernels.context.STATE."""
    gone = -float(as_of_ns - landmark) if landmark else 0.0
    slow, fast = (np.float32(np.exp(gone / t)) for t in tau[:2])
    n = len(ids)
    return Table(
        list(ids), state["ids"][:n].copy(), state["w"][:n] * slow, state["pop"][:n] * slow,
        state["fast"][:n] * fast, as_of_ns,
    )  # fmt: skip


def merge(tables: Sequence[Table], tau: np.ndarray) -> Table:
    """The sum of some tables of one catalogue, in the order given; every row keeps its greatest links, as
    many as the first table's rows have."""
    as_of_ns = max(t.as_of_ns for t in tables)
    gone = np.array([float(t.as_of_ns - as_of_ns) for t in tables])
    slow, fast = (np.exp(gone / t).astype("f4") for t in tau[:2])
    ids, w = np.stack([t.neighbours for t in tables]), np.stack([t.w for t in tables])
    out_ids, out_w = np.zeros_like(ids[0]), np.zeros_like(w[0])
    room = max(1, ids.shape[0] * ids.shape[2])
    kernel.merge(
        ids, w, slow, out_ids, out_w, np.zeros(ids.shape[1], "f4"), np.zeros(room, "i4"),
        np.zeros(room, "f4"), np.zeros(room, "i4"),
    )  # fmt: skip
    pop, recent = np.zeros_like(tables[0].pop), np.zeros_like(tables[0].fast)
    for t, s, f in zip(tables, slow, fast, strict=True):
        pop += t.pop * s
        recent += t.fast * f
    return Table(tables[0].ids, out_ids, out_w, pop, recent, as_of_ns)

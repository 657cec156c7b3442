"""A file of events -> the JSON records that the same events would be on Kafka."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from streamai.events import Schema
from streamai.kernels.index import hash_all
from streamai.replay.mapping import Mapping
from streamai.replay.read import scan_events, valid
from streamai.wire.binary import ID_BYTES, encode_binary_events


@dataclass
class Rows:
    """Records of a file, in its order.

    values    list[bytes], JSON; keys list[bytes | None]
    partition i8[n], by key; event_ts_ns i8[n], 0 where the row has no time
    """

    values: list
    keys: list
    partition: np.ndarray
    event_ts_ns: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


def read_rows(
    path: str | pathlib.Path,
    schema: Schema,
    mapping: Mapping | Iterable[str] | None = None,
    partitions: int = 1,
    sort: bool = False,
    batch: int = 16_384,
    binary: bool = False,
) -> Iterator[Rows]:
    """The file as records, in batches; see read.scan_events. binary: in the fixed form of wire/binary.py.

    Going through JSON costs 1 us an event and gives history the very path of live events: one decoder, one
    set of rules for dead letters, and the same bytes on the late topic.
    """
    for frame in scan_events(path, schema, mapping, sort, batch):
        rows = rows_of(frame, schema, partitions)
        yield replace(rows, values=_binary(frame, schema, rows.values)) if binary else rows


def _binary(frame: pl.DataFrame, schema: Schema, values: list[bytes]) -> list[bytes]:
    """values with the good rows as binary records; what that form cannot hold (a long id) or the wire will
    refuse stays JSON, as a topic may have both."""
    fits = valid(schema)
    for name in filter(None, (schema.key, schema.item)):
        fits &= pl.col(name).is_null() | (pl.col(name).str.len_bytes() <= ID_BYTES)
    good = frame.select(fits.fill_null(False)).to_series()
    part = frame.filter(good)
    records = encode_binary_events(schema, {name: part[name].to_list() for name in part.columns})
    out = list(values)
    for i, record in zip(np.flatnonzero(good.to_numpy()).tolist(), records, strict=True):
        out[i] = record
    return out


def rows_of(frame: pl.DataFrame, schema: Schema, partitions: int = 1) -> Rows:
    """The records of a frame with the schema's columns (see read.read_events)."""
    keys = frame[schema.key].cast(pl.Binary).to_list()
    times = frame["event_ts_ns"].fill_null(0).to_numpy()
    return Rows(encode_frame(frame, schema), keys, partition_of(keys, partitions), times)


def encode_frame(frame: pl.DataFrame, schema: Schema) -> list[bytes]:
    """One JSON object a row; what is null is left out (a missing key stands as null).

    A number is written in the fewest digits that give it back. NaN and infinity are written as such, which is
    no JSON: the decoder makes a dead letter of them, as it does when a live producer sends them.
    """
    head = [schema.key, *([schema.item] if schema.item else []), "kind", "event_ts_ns"]
    text = pl.struct(head).struct.json_encode().str.head(-1)
    columns = [
        c.name for c in schema.columns if c.name in frame.columns and frame[c.name].null_count() < len(frame)
    ]
    parts = [
        pl.when(pl.col(name).is_not_null())
        .then(pl.concat_str(pl.lit(f',"{name}":'), pl.col(name).cast(pl.String)))
        .otherwise(pl.lit(""))
        for name in columns
    ]
    return frame.select(pl.concat_str(text, *parts, pl.lit("}")).cast(pl.Binary)).to_series().to_list()


def partition_of(keys: list, partitions: int) -> np.ndarray:
    """Partition of each key: its hash modulo the number of partitions -> i8[n]; a missing key goes to 0.

    The same in `produce` and `replay`, so that history is split as the topic is.
    """
    if partitions == 1:
        return np.zeros(len(keys), np.int64)
    raw = [k or b"" for k in keys]
    at = np.zeros(len(raw) + 1, np.int64)
    np.cumsum([len(k) for k in raw], out=at[1:])
    hash0, hash1 = np.empty(len(raw), np.uint64), np.empty(len(raw), np.uint64)
    hash_all(np.frombuffer(b"".join(raw) or b"\0", np.uint8), at, hash0, hash1)
    return np.where(np.diff(at) > 0, hash0 % np.uint64(partitions), 0).astype(np.int64)

"""Recorded topics: parquet with what Kafka held, in arrival order; and the file that replay writes."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streamai.errors import InputError

RECORD = pa.schema(
    [
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))),
        ("kafka_ts_ms", pa.int64()),
    ]
)
"""A recorded topic. The topic's name is in the file's metadata under `topic`."""

OUTPUT = pa.schema(
    [
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("topic", pa.string()),
        ("value", pa.binary()),
        ("tier", pa.uint8()),
    ]
)
"""What replay writes: source partition and offset, which output (`recommendations`, `signals`, `scores`,
`features`, `late`, `dead`), its value as live would send it, and the tier it was made with."""

_ROWS_HELD = 65_536


log = logging.getLogger("streamai.replay")


class TableWriter:
    """Writes rows of a fixed layout to a parquet file in row groups of bounded size.

    The file has its name only when it is whole: until `close` it is NAME.part; after `leave` it stays that.
    """

    def __init__(self, path: str | pathlib.Path, layout: pa.Schema, topic: str = "") -> None:
        self.layout = layout.with_metadata({"topic": topic}) if topic else layout
        self.path = pathlib.Path(path).resolve()
        plain = self.path.is_file() or not self.path.exists()  # else a device, which has no other name
        self.draft = self.path.with_name(self.path.name + ".part") if plain else self.path
        try:
            self.file = pq.ParquetWriter(str(self.draft), self.layout, compression="zstd")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error
        self.held: list[pa.Table] = []
        self.rows_held = 0
        self.rows = 0

    def write(self, **columns: Sequence) -> None:
        """Add rows; every column of the layout, equally long."""
        arrays = [pa.array(columns[f.name], f.type) for f in self.layout]
        self.held.append(pa.Table.from_arrays(arrays, schema=self.layout))
        self.rows_held += len(arrays[0])
        self.rows += len(arrays[0])
        if self.rows_held >= _ROWS_HELD:
            self._flush()

    def _flush(self) -> None:
        if self.held:
            self.file.write_table(pa.concat_tables(self.held))
        self.held, self.rows_held = [], 0

    def close(self) -> None:
        """The file is whole."""
        self._flush()
        self.file.close()
        self.draft.replace(self.path)

    def leave(self) -> None:
        """Something failed: what there is stays readable, under the other name."""
        self._flush()
        self.file.close()
        if not self.rows:
            return self.draft.unlink() if self.draft != self.path else None
        log.warning("%s is not whole: the %d rows until now are in %s", self.path, self.rows, self.draft)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind, *exc) -> None:
        self.close() if kind is None else self.leave()


@dataclass
class Records:
    """Kafka records of one partition, in offset order.

    values list[bytes | None]; offsets, kafka_ts_ns i8[n]
    """

    partition: int
    values: list
    offsets: np.ndarray
    kafka_ts_ns: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


def topic_of(path: str | pathlib.Path) -> str:
    """The name of the topic that was recorded into the file; "" if the file does not say."""
    try:
        metadata = pq.read_schema(str(path)).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is not a recorded topic: {error}") from error
    return metadata.get(b"topic", b"").decode()


def read_records(path: str | pathlib.Path, batch: int = 16_384) -> Iterator[Records]:
    """The records of a recorded topic in the file's order, cut where the partition changes."""
    try:
        file = pq.ParquetFile(str(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is not a recorded topic: {error}") from error
    columns = ["partition", "offset", "value", "kafka_ts_ms"]
    missing = [c for c in columns if c not in file.schema_arrow.names]
    if missing:
        raise InputError(f"{path} is not a recorded topic: no column {', '.join(missing)}")
    for part in file.iter_batches(batch_size=batch, columns=columns):
        partition, offset, value, kafka_ts_ms = (part.column(i) for i in range(4))
        partition = partition.to_numpy()
        edges = np.flatnonzero(np.diff(partition)) + 1
        values = value.to_pylist()
        offsets, kafka_ts_ns = offset.to_numpy(), kafka_ts_ms.to_numpy() * 1_000_000
        for i, j in zip([0, *edges.tolist()], [*edges.tolist(), len(values)]):
            yield Records(int(partition[i]), values[i:j], offsets[i:j], kafka_ts_ns[i:j])


def partitions_of(path: str | pathlib.Path) -> int:
    """How many partitions the recorded topic needs: the greatest that has a record, and those below."""
    column = pq.read_table(str(path), columns=["partition"])["partition"]
    return 1 + (pc.max(column).as_py() if len(column) else 0)


def read_keyed(path: str | pathlib.Path, batch: int = 16_384) -> Iterator[tuple[list, list, list]]:
    """(values, keys, partitions) of a recorded topic in the file's order: what `live.topic.produce` takes."""
    file = pq.ParquetFile(str(path))
    for part in file.iter_batches(batch_size=batch, columns=["value", "key", "partition"]):
        yield tuple(part.column(i).to_pylist() for i in range(3))

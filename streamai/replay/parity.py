"""Does replay give what was served? Whole value bytes, event by event."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from streamai.errors import InputError
from streamai.replay.progress import Progress
from streamai.replay.read import count_rows
from streamai.replay.record import topic_of

_ID = r'^\{"id":"(?:[^"\\]|\\.)*/(\d+)/(\d+)"'
_ID_HEADER = r"/(\d+)/(\d+)$"
_SIDE_OUTPUTS = ("features", "late", "dead")
LIVE, REPLAY = 0, 1
BATCH = 16_384


@dataclass(frozen=True)
class Difference:
    """The first id whose values differ, and where: byte position and JSON field (None where not JSON)."""

    id: str
    live: str | None
    replay: str | None
    byte: int
    field: str | None


@dataclass(frozen=True)
class Parity:
    """Counts of ids: compared (in both), doubles in the live topic, in one only, with other values."""

    compared: int
    duplicates: int
    only_live: int
    only_replay: int
    different: int
    first: Difference | None

    @property
    def identical(self) -> bool:
        """True only if something was compared and nothing differs or is missing on either side."""
        return self.compared > 0 and not (self.only_live or self.only_replay or self.different)

    def as_dict(self) -> dict:
        return {"identical": self.identical, **asdict(self)}


def compare(live: str | pathlib.Path, replayed: str | pathlib.Path, topic: str = "") -> Parity:
    """A recorded live output topic beside the file of `streamai replay`, value bytes whole, by id.

    topic: which output of the replay file to compare; default: what the recording says it is.
    Of a doubled output the first one counts. InputError if the files do not fit together.
    Memory holds what one file has met and the other not yet, and one byte an event.
    """
    name = _name(live, replayed, topic)
    sides = (
        _batches(live, ["value", "headers"], "a recorded topic"),
        _batches(replayed, ["topic", "partition", "offset", "value"], "a file of streamai replay"),
    )
    total = count_rows(live) + count_rows(replayed)
    meeting = _Meeting()
    with Progress("parity", total) as bar:
        open_sides = [True, True]
        while any(open_sides):
            # the side that has fewer waiting goes on, so that neither runs ahead
            side = REPLAY if len(meeting.waiting[REPLAY]) < len(meeting.waiting[LIVE]) else LIVE
            side = side if open_sides[side] else 1 - side
            part = next(sides[side], None)
            if part is None:
                open_sides[side] = False
                continue
            rows = _served(part, live) if side == LIVE else part.filter(pl.col("topic") == name)
            for place in zip(*(rows[c].to_list() for c in ("partition", "offset", "value"))):
                meeting.take(side, *place)
            bar.advance(len(part))
    return meeting.result()


class _Meeting:
    """Values of both files by place, (partition, offset), until their counterpart comes."""

    def __init__(self) -> None:
        self.waiting: tuple[dict, dict] = ({}, {})
        self.seen: dict[int, bytearray] = {}  # by partition: 1 at each offset that live has had
        self.compared = self.duplicates = self.different = 0
        self.first: tuple | None = None  # place, live, replay: of the wrong ones the first

    def take(self, side: int, partition: int, offset: int, value: bytes | None) -> None:
        """One output of one file."""
        if side == LIVE:
            seen = self.seen.setdefault(partition, bytearray())
            if offset >= len(seen):
                seen.extend(bytes(offset + BATCH - len(seen)))
            if seen[offset]:
                self.duplicates += 1
                return
            seen[offset] = 1
        place = partition, offset
        if place not in self.waiting[1 - side]:
            self.waiting[side][place] = value
            return
        other = self.waiting[1 - side].pop(place)
        self.compared += 1
        if value != other:
            self.different += 1
            self._wrong(place, *((value, other) if side == LIVE else (other, value)))

    def _wrong(self, place: tuple[int, int], live: bytes | None, replay: bytes | None) -> None:
        if self.first is None or place < self.first[0]:
            self.first = place, live, replay

    def result(self) -> Parity:
        """When both files have ended: what still waits is in one of them only."""
        for side, waiting in enumerate(self.waiting):
            if waiting:
                place = min(waiting)
                pair = (waiting[place], None) if side == LIVE else (None, waiting[place])
                self._wrong(place, *pair)
        only_live, only_replay = map(len, self.waiting)
        first = None if self.first is None else _difference(*self.first)
        return Parity(
            self.compared, self.duplicates, only_live, only_replay,
            self.different, first,
        )  # fmt: skip


def _name(live: str | pathlib.Path, replayed: str | pathlib.Path, topic: str) -> str:
    """Which output of the replay file is compared."""
    name = topic or output_name(topic_of(live))
    try:
        topics = (
            pl.scan_parquet(replayed).select(pl.col("topic").unique().sort()).collect()["topic"].to_list()
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{replayed} is not a file of streamai replay: {error}") from error
    if not name:
        results = [t for t in topics if t not in _SIDE_OUTPUTS]
        if len(results) != 1:
            raise InputError(f"{live} does not say its topic; give --topic, one of {', '.join(topics)}")
        name = results[0]
    if name not in topics:
        raise InputError(f"{replayed} has no output {name!r}; it has {', '.join(topics)}. Give --topic")
    return name


def _batches(path: str | pathlib.Path, columns: list[str], what: str) -> Iterator[pl.DataFrame]:
    try:
        file = pq.ParquetFile(str(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is not {what}: {error}") from error
    missing = [c for c in columns if c not in file.schema_arrow.names]
    if missing:
        raise InputError(f"{path} is not {what}: no column {', '.join(missing)}")
    for part in file.iter_batches(batch_size=BATCH, columns=columns):
        yield pl.from_arrow(part)


def output_name(topic: str) -> str:
    """The output kept in a topic: `clicks.features` -> `features`, `recommendations` -> itself."""
    ending = topic.rpartition(".")[2]
    return ending if ending in _SIDE_OUTPUTS else topic


def _served(table: pl.DataFrame, live: str | pathlib.Path) -> pl.DataFrame:
    """partition and offset of the source event (from the id in the value, else in the headers) and value."""
    text = pl.col("value").cast(pl.String, strict=False)
    header = pl.col("headers").list.eval(
        pl.element().struct.field("value").filter(pl.element().struct.field("key") == "id")
    )
    header = header.list.first().cast(pl.String, strict=False)
    ids = [
        pl.coalesce(text.str.extract(_ID, i), header.str.extract(_ID_HEADER, i)).cast(kind).alias(name)
        for i, name, kind in ((1, "partition", pl.Int32), (2, "offset", pl.Int64))
    ]
    table = table.select(*ids, "value")
    nameless = table["offset"].null_count()
    if nameless:
        raise InputError(f"{live}: {nameless} of {len(table)} records have no id; is it an output topic?")
    return table


def _difference(place: tuple[int, int], live: bytes | None, replay: bytes | None) -> Difference:
    a, b = live or b"", replay or b""
    byte = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    text = [None if v is None else v.decode(errors="backslashreplace") for v in (live, replay)]
    return Difference(f"{place[0]}/{place[1]}", *text, byte, _field(a, b))


def _field(a: bytes, b: bytes) -> str | None:
    try:
        x, y = json.loads(a), json.loads(b)
    except ValueError:
        return None
    if not (isinstance(x, dict) and isinstance(y, dict)):
        return None
    return next((k for k in (*x, *y) if k not in x or k not in y or x[k] != y[k]), None)

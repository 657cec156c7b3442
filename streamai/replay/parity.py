"""Does replay give what was served? Whole value bytes, event by event."""

from __future__ import annotations

import json
import pathlib
from dataclasses import asdict, dataclass

import polars as pl

from streamai.errors import InputError
from streamai.replay.record import topic_of

_ID = r'^\{"id":"(?:[^"\\]|\\.)*/(\d+)/(\d+)"'
_ID_HEADER = r"/(\d+)/(\d+)$"
_SIDE_OUTPUTS = ("features", "late", "dead")


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
    """
    name = topic or output_name(topic_of(live))
    there = pl.scan_parquet(replayed)
    topics = there.select(pl.col("topic").unique().sort()).collect()["topic"].to_list()
    if not name:
        results = [t for t in topics if t not in _SIDE_OUTPUTS]
        if len(results) != 1:
            raise InputError(f"{live} does not say its topic; give --topic, one of {', '.join(topics)}")
        name = results[0]
    if name not in topics:
        raise InputError(f"{replayed} has no output {name!r}; it has {', '.join(topics)}. Give --topic")
    served = _served(live)
    first = served.unique(["partition", "offset"], keep="first", maintain_order=True)
    replay = there.filter(pl.col("topic") == name).select("partition", "offset", replay="value").collect()
    both = first.join(replay, on=["partition", "offset"], how="full", coalesce=True)
    both = both.with_columns(pl.col("value").eq_missing(pl.col("replay")).alias("same"))
    wrong = both.filter(~pl.col("same")).sort("partition", "offset")
    only_live, only_replay = wrong["replay"].null_count(), wrong["value"].null_count()
    return Parity(
        compared=len(both) - only_live - only_replay,
        duplicates=len(served) - len(first),
        only_live=only_live,
        only_replay=only_replay,
        different=len(wrong) - only_live - only_replay,
        first=_difference(wrong.row(0, named=True)) if len(wrong) else None,
    )


def output_name(topic: str) -> str:
    """The output kept in a topic: `clicks.features` -> `features`, `recommendations` -> itself."""
    ending = topic.rpartition(".")[2]
    return ending if ending in _SIDE_OUTPUTS else topic


def _served(live: str | pathlib.Path) -> pl.DataFrame:
    """partition and offset of the source event (from the id in the value, else in the headers) and value."""
    try:
        table = pl.read_parquet(live, columns=["value", "headers"])
    except pl.exceptions.ColumnNotFoundError as error:
        raise InputError(f"{live} is not a recorded topic: {error}") from error
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


def _difference(row: dict) -> Difference:
    live, replay = row["value"], row["replay"]
    place = f"{row['partition']}/{row['offset']}"
    a, b = live or b"", replay or b""
    byte = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    text = [None if v is None else v.decode(errors="backslashreplace") for v in (live, replay)]
    return Difference(place, *text, byte, _field(a, b))


def _field(a: bytes, b: bytes) -> str | None:
    try:
        x, y = json.loads(a), json.loads(b)
    except ValueError:
        return None
    if not (isinstance(x, dict) and isinstance(y, dict)):
        return None
    return next((k for k in (*x, *y) if k not in x or k not in y or x[k] != y[k]), None)

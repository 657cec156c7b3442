"""Files of events -> frames with the schema's columns, in batches of constant memory.

Parquet, CSV, NDJSON, MovieLens (`ratings.dat`, `ratings.csv`, `u.data`), and topics recorded by
`streamai record`. Rows keep the file's order, which is taken as the order of arrival, unless `sort` asks for
the order of event time. Validation is not done here: a frame becomes JSON records and goes through the same
decoder as live events (see run.py), so one set of rules decides what is a dead letter.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import polars as pl

from streamai.errors import InputError
from streamai.events import CLICKS, Schema
from streamai.replay.mapping import Mapping, Selection, select
from streamai.wire.check import KEY_BYTES_MAX, TIME_END_NS

log = logging.getLogger("streamai.replay")

EARLY_NS = 31_536_000 * 10**9
"""1971: whose times all lie before are read in too small a unit, most likely."""

RECORDED = ("partition", "offset", "key", "value", "kafka_ts_ms")
"""Columns that make a parquet file a recorded topic."""

_MOVIELENS = Mapping({"user_id": "user_id", "item_id": "item_id", "event_ts_s": "timestamp"})
_MOVIELENS_CSV = Mapping({"user_id": "userId", "item_id": "movieId", "event_ts_s": "timestamp"})


def is_recorded(path: str | pathlib.Path) -> bool:
    """Whether the file is a topic written by `streamai record`."""
    if pathlib.Path(path).suffix != ".parquet":
        return False
    with _readable(path):
        return set(RECORDED) <= set(pl.scan_parquet(path).collect_schema())


def read_events(
    path: str | pathlib.Path,
    schema: Schema,
    mapping: Mapping | Iterable[str] | None = None,
    sort: bool = False,
    keep: Iterable[str] = (),
) -> pl.DataFrame:
    """The whole file as one frame: the schema's key, item, `kind` (String), `event_ts_ns` (Int64), and its
    columns (Float64, null = missing); then `position` (Int64) if it is mapped, then `keep` as they are.

    mapping   a Mapping, or the strings of `--map`
    sort      by event time, equal times in file order

    Where there are no times, `position` gives them (one second each) and the rows are sorted by it.
    Invalid rows are kept: `valid` tells them. InputError where a field cannot be found.
    """
    frame, _ = _scan(path, schema, mapping, sort, keep)
    with _readable(path):
        return frame.collect()


def conform(
    frame: pl.DataFrame, schema: Schema, mapping: Mapping | Iterable[str] | None = None
) -> pl.DataFrame:
    """A table in memory with the schema's columns, as read_events gives them; rows in their order."""
    selection = select(as_mapping(mapping), schema, frame.schema, "the table")
    out = frame.select(selection.exprs)
    return out.sort("event_ts_ns", maintain_order=True) if selection.no_time else out


def scan_events(
    path: str | pathlib.Path,
    schema: Schema,
    mapping: Mapping | Iterable[str] | None = None,
    sort: bool = False,
    batch: int = 16_384,
) -> Iterator[pl.DataFrame]:
    """The same in frames of about `batch` rows. Constant memory, except that sorting needs the whole file."""
    frame, selection = _scan(path, schema, mapping, sort, ())
    first = True
    with _readable(path):
        for part in frame.collect_batches(chunk_size=batch, maintain_order=True, lazy=True):
            if first and len(part):
                first = False
                _check_times(part, path, selection)
            yield part


def item_ids(
    path: str | pathlib.Path, schema: Schema, mapping: Mapping | Iterable[str] | None = None
) -> list[str]:
    """The distinct item ids of a file of events, sorted (numbers by value)."""
    if is_recorded(path):
        raise InputError(f"{path} is a recorded topic; give its catalogue as a file")
    frame, _ = _scan(path, schema, mapping, False, ())
    with _readable(path):
        ids = frame.select(pl.col(schema.item).unique()).collect().to_series().drop_nulls().to_list()
    return sorted(filter(None, ids), key=lambda i: (0, int(i), i) if i.isdecimal() else (1, 0, i))


def count_rows(path: str | pathlib.Path) -> int:
    """Number of rows of the file, for progress bars; CSV files are read once for it."""
    with _readable(path):
        return _open(pathlib.Path(path))[0].select(pl.len()).collect().item()


def valid(schema: Schema) -> pl.Expr:
    """Which rows of a frame of `read_events` the wire accepts: `wire/check.py`'s rules (but for its check of
    the event time against Kafka's)."""
    time = pl.col("event_ts_ns")
    good = _good_id(schema.key) & (time > 0) & (time < TIME_END_NS) & pl.col("kind").is_in(list(schema.kinds))
    if schema.item:
        good &= pl.col(schema.item).is_null() | _good_id(schema.item)
    for column in schema.columns:
        value = pl.col(column.name)
        rule = {
            "any": value.is_finite(),
            "positive": (value > 0) & value.is_finite(),
            "non_negative": (value >= 0) & value.is_finite(),
            "sign": value.is_in([-1.0, 0.0, 1.0]),
        }[column.rule]
        good &= rule if column.required else (value.is_null() | rule)
    if schema.crossed:
        bid, ask = schema.crossed
        good &= (pl.col(bid) <= pl.col(ask)).fill_null(True)
    for kind, column in schema.needs:
        good &= (pl.col("kind") != kind) | pl.col(column).is_not_null()
    return good.fill_null(False)


def _good_id(name: str) -> pl.Expr:
    return pl.col(name).is_not_null() & pl.col(name).str.len_bytes().is_between(1, KEY_BYTES_MAX)


def as_mapping(mapping: Mapping | Iterable[str] | None) -> Mapping:
    """A Mapping from what callers may give: none, one, or the strings of `--map`."""
    if mapping is None:
        return Mapping()
    return mapping if isinstance(mapping, Mapping) else Mapping.parse(mapping)


def _scan(
    path: str | pathlib.Path,
    schema: Schema,
    mapping: Mapping | Iterable[str] | None,
    sort: bool,
    keep: Iterable[str],
) -> tuple[pl.LazyFrame, Selection]:
    path = pathlib.Path(path)
    table, known = _open(path)
    with _readable(path):
        columns = table.collect_schema()
    if set(RECORDED) <= set(columns):
        raise InputError(f"{path} is a recorded topic, not a table of events: replay reads it without --map")
    mapping = as_mapping(mapping)
    if known and schema.name == CLICKS.name:
        mapping = mapping.over(known)
    selection = select(mapping, schema, columns, str(path), keep)
    frame = table.select(selection.exprs)
    if sort or selection.no_time:
        frame = frame.sort("event_ts_ns", maintain_order=True)
    return frame, selection


@contextlib.contextmanager
def _readable(path: str | pathlib.Path) -> Iterator[None]:
    """polars' own errors as InputError: it reads late, where rows are asked for."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _open(path: pathlib.Path) -> tuple[pl.LazyFrame, Mapping | None]:
    """The file as it is, and what its layout says by itself.

    CSV columns are read as text: an id keeps its zeros, and a bad number is one bad row, not a failed file.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    name, suffix = path.name.lower(), path.suffix.lower()
    try:
        if path.is_dir() or suffix in (".parquet", ".pq"):
            return pl.scan_parquet(path / "**/*.parquet" if path.is_dir() else path), None
        if suffix in (".ndjson", ".jsonl", ".json"):
            return pl.scan_ndjson(path, infer_schema_length=10_000), None
        if name == "u.data" or suffix == ".inter":
            return _movielens_tab(path, header=suffix == ".inter")
        if suffix == ".dat":
            return _movielens_dat(path)
        if suffix in (".csv", ".tsv", ".txt", ".gz"):
            table = pl.scan_csv(path, separator="\t" if ".tsv" in name else ",", infer_schema=False)
            movielens = {"userId", "movieId", "timestamp"} <= set(table.collect_schema())
            return table, _MOVIELENS_CSV if movielens else None
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path} cannot be read as {suffix or 'a table'}: {error}") from error
    raise InputError(
        f"{path}: unknown format {suffix!r}; expected .parquet, .csv, .tsv, .ndjson or MovieLens .dat"
    )


def _movielens_dat(path: pathlib.Path) -> tuple[pl.LazyFrame, Mapping]:
    """`user::item::rating::seconds`. polars splits at one byte, so every second column is empty."""
    with open(path, "rb") as file:
        if file.readline().count(b"::") != 3:
            raise InputError(f"{path}: expected the MovieLens ratings layout, user::movie::rating::timestamp")
    names = ["user_id", "_1", "item_id", "_2", "rating", "_3", "timestamp"]
    table = pl.scan_csv(path, separator=":", has_header=False, new_columns=names, infer_schema=False)
    return table.select("user_id", "item_id", "rating", "timestamp"), _MOVIELENS


def _movielens_tab(path: pathlib.Path, header: bool) -> tuple[pl.LazyFrame, Mapping]:
    """MovieLens 100K's `u.data`, or RecBole's `.inter` whose header names types (`user_id:token`)."""
    if not header:
        names = ["user_id", "item_id", "rating", "timestamp"]
        table = pl.scan_csv(path, separator="\t", has_header=False, new_columns=names, infer_schema=False)
        return table, _MOVIELENS
    table = pl.scan_csv(path, separator="\t", infer_schema=False)
    return table.rename(lambda name: name.split(":")[0]), _MOVIELENS


def _check_times(part: pl.DataFrame, path: str | pathlib.Path, selection: Selection) -> None:
    if part["event_ts_ns"].null_count() == len(part):
        raise InputError(
            f"{path}: none of the first {len(part)} rows has a time that can be read (years 1678 to 2262). "
            "Is the unit in --map event_ts_s, _ms, _us, _ns the column's?"
        )
    newest = part["event_ts_ns"].max()
    if not selection.no_time and 0 < newest < EARLY_NS:
        log.warning(
            "%s: the first %d rows are all of %s or before. Is the unit in --map event_ts_s, _ms, _us, _ns "
            "the column's?",
            path, len(part), f"{datetime.fromtimestamp(newest / 1e9, UTC):%Y-%m-%d}",
        )  # fmt: skip

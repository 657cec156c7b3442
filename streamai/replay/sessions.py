"""Public files of sessions, as their publishers lay them out -> tables of clicks in the order of time.

YooChoose     `yoochoose-clicks.dat`: session,time,item,category without a header
RetailRocket  `events.csv`: timestamp (ms), visitorid, event, itemid, transactionid; a visitor's events are
              cut into sessions where 30 minutes pass without one
Diginetica    `train-item-views.csv`: sessionId;userId;itemId;timeframe (ms of the day's session);eventdate

A table has user_id (the session), item_id, kind, event_ts_ms: `streamai replay` and `evaluate` take it
without --map. A time that cannot be read stays null, and its row becomes a dead letter there.
"""

from __future__ import annotations

import pathlib

import polars as pl

from streamai.errors import InputError

IDLE_MS = 30 * 60 * 1000
_KINDS = {"view": "view", "addtocart": "cart", "transaction": "buy"}
_RETAILROCKET = ("timestamp", "visitorid", "event", "itemid")
_DIGINETICA = ("sessionId", "itemId", "timeframe", "eventdate")


def yoochoose(path: str | pathlib.Path) -> pl.LazyFrame:
    """Clicks of `yoochoose-clicks.dat`."""
    names = ["session", "time", "item", "category"]
    table = _scan(path, ",", header=False)
    if len(table.collect_schema()) != len(names):
        raise InputError(
            f"{path}: {len(table.collect_schema())} columns; expected the four of yoochoose-clicks.dat, "
            "session,time,item,category, without a header"
        )
    table = table.rename(dict(zip(table.collect_schema().names(), names)))
    time = pl.col("time").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="ms", strict=False)
    return _clicks(table, "session", "item", pl.lit("click"), time.dt.epoch("ms"))


def retailrocket(path: str | pathlib.Path) -> pl.LazyFrame:
    """Events of RetailRocket's `events.csv`, by session."""
    table = _with_columns(_scan(path, ","), path, _RETAILROCKET, "RetailRocket's events.csv")
    time = pl.col("timestamp").cast(pl.Int64, strict=False)
    table = table.with_columns(_ms=time).sort("_ms", maintain_order=True)
    idle = pl.col("_ms") - pl.col("_ms").shift(1).over("visitorid")
    number = (idle > IDLE_MS).fill_null(False).cum_sum().over("visitorid")
    table = table.with_columns(_session=pl.format("{}-{}", pl.col("visitorid"), number))
    # a kind of event that is not known stays as it is: a dead letter says so
    kind = pl.col("event").replace(_KINDS)
    return _clicks(table, "_session", "itemid", kind, pl.col("_ms"))


def diginetica(path: str | pathlib.Path) -> pl.LazyFrame:
    """Views of Diginetica's `train-item-views.csv`."""
    table = _with_columns(_scan(path, ";"), path, _DIGINETICA, "Diginetica's train-item-views.csv")
    day = pl.col("eventdate").str.to_datetime("%Y-%m-%d", time_unit="ms", strict=False).dt.epoch("ms")
    time = day + pl.col("timeframe").cast(pl.Int64, strict=False)
    return _clicks(table, "sessionId", "itemId", pl.lit("view"), time)


LAYOUTS = {"yoochoose": yoochoose, "retailrocket": retailrocket, "diginetica": diginetica}


def convert(layout: str, path: str | pathlib.Path, out: str | pathlib.Path) -> int:
    """Write the table of a file of one of LAYOUTS to parquet; the number of its rows. InputError if the file
    is not of that layout. The output has its name when it is whole."""
    frame = LAYOUTS[layout](path)
    out = pathlib.Path(out)
    draft = out.with_name(out.name + ".part")
    try:
        frame.sink_parquet(draft, compression="zstd")
        rows = pl.scan_parquet(draft).select(pl.len()).collect().item()
        draft.replace(out)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} cannot be converted to {out}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return rows


def _scan(path: str | pathlib.Path, separator: str, header: bool = True) -> pl.LazyFrame:
    """All columns as text: a bad number is one bad row, not a failed file."""
    if not pathlib.Path(path).exists():
        raise InputError(f"{path}: no such file")
    try:
        table = pl.scan_csv(path, separator=separator, has_header=header, infer_schema=False)
        table.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return table


def _with_columns(table: pl.LazyFrame, path, names: tuple[str, ...], what: str) -> pl.LazyFrame:
    have = table.collect_schema().names()
    missing = [n for n in names if n not in have]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; expected {what}, it has {', '.join(have)}")
    return table


def _clicks(table: pl.LazyFrame, session: str, item: str, kind: pl.Expr, ms: pl.Expr) -> pl.LazyFrame:
    columns = table.select(user_id=pl.col(session), item_id=pl.col(item), kind=kind, event_ts_ms=ms)
    return columns.sort("event_ts_ms", maintain_order=True, nulls_last=True)

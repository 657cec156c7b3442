"""Public market files -> market events: best bid and offer over exchanges, LOBSTER rows.

Both give frames with the columns of events.MARKET, `instrument`, `kind` and `event_ts_ns`, prices in
currency units, in the order of the source.
"""

from __future__ import annotations

import datetime as dt
import pathlib
import re
from collections.abc import Iterator

import polars as pl

from streamai.errors import InputError
from streamai.replay.mapping import divided

COLUMNS = (
    "instrument", "kind", "event_ts_ns", "bid", "ask", "bid_size", "ask_size", "price", "size", "side",
)  # fmt: skip
ZONE = "America/New_York"
PRICE_UNIT = 10_000
"""Both sources write prices in 1/10000 of the currency."""

_LOBSTER_NAME = re.compile(r"^(?P<instrument>.+?)_(?P<day>\d{4}-\d\d-\d\d)_.*_message_(?P<levels>\d+)\.csv$")
_LOBSTER_EMPTY = 9_999_999_999
_NO_ASK = 2**62


def best_quotes(quotes: pl.DataFrame) -> pl.DataFrame:
    """Best bid and offer after each row of quotes that update one side of one exchange.

    quotes: exchange, bid_price_1e4, bid_size, ask_price_1e4, ask_size (0 where the row does not update that
    side), in order. Gives bid, ask (highest and lowest over the exchanges' newest), and the sizes
    summed over the exchanges at that price; null while a side is unknown.

    The source has no withdrawals, so an exchange that left would stand for ever. A new quote therefore
    withdraws the other side's quotes that it locks or crosses: exchanges may not display such quotes
    (Regulation NMS, rule 610), so the older one is gone.
    """
    exchanges = quotes["exchange"].unique().sort().to_list()
    at = dict(zip(exchanges, range(len(exchanges))))
    bids, bid_sizes = [0] * len(exchanges), [0] * len(exchanges)
    asks, ask_sizes = [_NO_ASK] * len(exchanges), [0] * len(exchanges)
    out = []
    names = ("exchange", "bid_price_1e4", "bid_size", "ask_price_1e4", "ask_size")
    for exchange, bid, bid_size, ask, ask_size in zip(*(quotes[n].to_list() for n in names)):
        i = at[exchange]
        if bid > 0:
            bids[i], bid_sizes[i] = (bid, bid_size) if bid_size > 0 else (0, 0)
            if bid_size > 0 and bid >= min(asks):
                asks = [_NO_ASK if a <= bid else a for a in asks]
        if ask > 0:
            asks[i], ask_sizes[i] = (ask, ask_size) if ask_size > 0 else (_NO_ASK, 0)
            if ask_size > 0 and ask <= max(bids):
                bids = [0 if b >= ask else b for b in bids]
        best_bid, best_ask = max(bids), min(asks)
        bid_depth = sum([s for b, s in zip(bids, bid_sizes) if b == best_bid])
        ask_depth = sum([s for a, s in zip(asks, ask_sizes) if a == best_ask])
        out.append((best_bid, best_ask, bid_depth, ask_depth))
    best = pl.DataFrame(out, schema=["bid", "ask", "bid_size", "ask_size"], orient="row")
    no_bid, no_ask = pl.col("bid") == 0, pl.col("ask") == _NO_ASK
    return best.select(
        pl.when(~no_bid).then(divided(pl.col("bid"), PRICE_UNIT)).alias("bid"),
        pl.when(~no_ask).then(divided(pl.col("ask"), PRICE_UNIT)).alias("ask"),
        pl.when(~no_bid).then(pl.col("bid_size").cast(pl.Float64)).alias("bid_size"),
        pl.when(~no_ask).then(pl.col("ask_size").cast(pl.Float64)).alias("ask_size"),
    )


def taq_day(quotes: pl.DataFrame, trades: pl.DataFrame, instrument: str) -> pl.DataFrame:
    """Market events of one day of quotes and trades (`date`, `time_ms` since midnight New York).

    A quote event comes only where the best prices or sizes change and both sides are known. Within one
    millisecond trades stand before quotes, so that a trade is compared with a book from before it. Its side
    is the quote rule (Lee and Ready 1991): above the mid 1, below -1, at it 0, unknown before the first
    quote. Rows marked suspicious are left out.
    """
    quotes, trades = quotes.filter(pl.col("suspicious") == 0), trades.filter(pl.col("suspicious") == 0)
    best = best_quotes(quotes).with_columns(_since_midnight(quotes)).drop_nulls()
    sides = ["bid", "ask", "bid_size", "ask_size"]
    changed = pl.any_horizontal(pl.col(c) != pl.col(c).shift(1) for c in sides).fill_null(True)
    best = best.filter(changed).with_columns(pl.lit("quote").alias("kind"), pl.lit(1).alias("after"))
    prints = trades.select(
        _since_midnight(trades),
        divided(pl.col("price_1e4"), PRICE_UNIT).alias("price"),
        pl.col("size").cast(pl.Float64),
        pl.lit("trade").alias("kind"),
        pl.lit(0).alias("after"),
    )
    both = pl.concat([prints, best], how="diagonal").sort(["event_ts_ns", "after"], maintain_order=True)
    mid = ((pl.col("bid") + pl.col("ask")) / 2).forward_fill()
    side = pl.when(pl.col("kind") == "trade").then((pl.col("price") - mid).round(6).sign())
    return both.with_columns(side.alias("side"), pl.lit(instrument).alias("instrument")).select(COLUMNS)


def taq(
    quotes: str | pathlib.Path, trades: str | pathlib.Path, instrument: str, session: bool = False
) -> Iterator[pl.DataFrame]:
    """The two files (see shared data's US equity ticks), a frame a day. session: 09:30 to 16:00 only."""
    tables = pl.scan_parquet(quotes), pl.scan_parquet(trades)
    if session:
        hours = pl.col("time_ms").is_between(int(9.5 * 3_600_000), 16 * 3_600_000, closed="left")
        tables = tuple(t.filter(hours) for t in tables)
    for day in tables[0].select(pl.col("date").unique().sort()).collect()["date"]:
        parts = (t.filter(pl.col("date") == day).collect() for t in tables)
        yield taq_day(*parts, instrument)


def lobster(
    path: str | pathlib.Path, instrument: str | None = None, day: dt.date | None = None
) -> pl.DataFrame:
    """Market events of a LOBSTER file: each row an event and the best prices right after it.

    path: a parquet file with time_ns, event_type, size, price, direction, ask_price_1, ..., or LOBSTER's own
    `..._message_N.csv` with `..._orderbook_N.csv` beside it, whose name gives instrument and day.
    Types 1 -> quote; 2, 3 -> cancel; 4, 5 -> trade with price, size and side = -direction (an execution of a
    sell order is bought); others (halts, auctions) are left out. InputError without instrument or day.
    """
    path = pathlib.Path(path)
    named = _LOBSTER_NAME.match(path.name)
    if named:
        instrument, day = instrument or named["instrument"], day or dt.date.fromisoformat(named["day"])
    if not instrument or not day:
        raise InputError(f"{path}: the name does not say instrument and day; give --instrument and --date")
    table = _lobster_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    trade = pl.col("event_type").is_in([4, 5])
    kinds = {1: "quote", 2: "cancel", 3: "cancel", 4: "trade", 5: "trade"}
    books = []
    for side in ("bid", "ask"):
        price, size = pl.col(f"{side}_price_1"), pl.col(f"{side}_size_1").cast(pl.Float64)
        there = price.abs() < _LOBSTER_EMPTY
        books.append(pl.when(there).then(divided(price, PRICE_UNIT)).alias(side))
        books.append(pl.when(there).then(size).alias(f"{side}_size"))
    return table.filter(pl.col("event_type").is_in(list(kinds))).select(
        pl.lit(instrument).alias("instrument"),
        pl.col("event_type").replace_strict(kinds, return_dtype=pl.String).alias("kind"),
        _utc(pl.lit(day), pl.col("time_ns")),
        *books,
        pl.when(trade).then(divided(pl.col("price"), PRICE_UNIT)).alias("price"),
        pl.when(trade).then(pl.col("size").cast(pl.Float64)).alias("size"),
        pl.when(trade).then(-pl.col("direction").cast(pl.Float64)).alias("side"),
    ).select(COLUMNS)  # fmt: skip


def _lobster_csv(path: pathlib.Path) -> pl.DataFrame:
    book = path.with_name(path.name.replace("_message_", "_orderbook_"))
    if not book.exists():
        raise InputError(f"{path}: no {book.name} beside it")
    names = ["time", "event_type", "order_id", "size", "price", "direction"]
    # as text: seconds with nine decimals do not fit a float
    messages = pl.read_csv(path, has_header=False, infer_schema=False).select(pl.nth(range(6)))
    messages = messages.rename(dict(zip(messages.columns, names)))
    messages = messages.with_columns(pl.col(names[1:]).cast(pl.Int64))
    whole, part = "whole", "fraction"
    clock = pl.col("time").str.split_exact(".", 1).struct.rename_fields([whole, part])
    ns = clock.struct.field(whole).cast(pl.Int64) * 1_000_000_000 + clock.struct.field(part).fill_null(
        "0"
    ).str.pad_end(9, "0").str.slice(0, 9).cast(pl.Int64)
    sides = ["ask_price_1", "ask_size_1", "bid_price_1", "bid_size_1"]
    levels = pl.read_csv(book, has_header=False).select(pl.nth(range(4)))
    levels = levels.rename(dict(zip(levels.columns, sides)))
    return pl.concat([messages.with_columns(ns.alias("time_ns")), levels], how="horizontal")


def _since_midnight(table: pl.DataFrame) -> pl.Series:
    return table.select(_utc(pl.col("date"), pl.col("time_ms").cast(pl.Int64) * 1_000_000)).to_series()


def _utc(day: pl.Expr, since_ns: pl.Expr) -> pl.Expr:
    """Wall time in New York -> event_ts_ns."""
    wall = day.cast(pl.Datetime("ns")) + pl.duration(nanoseconds=since_ns, time_unit="ns")
    return wall.dt.replace_time_zone(ZONE, ambiguous="earliest").dt.epoch("ns").alias("event_ts_ns")

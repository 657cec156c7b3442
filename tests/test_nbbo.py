"""Public market files -> market events."""

import datetime as dt

import polars as pl
import pytest

from streamai.errors import InputError
from streamai.events import MARKET
from streamai.replay.nbbo import best_quotes, lobster, taq_day
from streamai.replay.read import read_events, valid

DAY = dt.date(2013, 10, 7)


def quotes(*rows):
    names = ["time_ms", "exchange", "bid_price_1e4", "bid_size", "ask_price_1e4", "ask_size"]
    table = pl.DataFrame(rows, schema=names, orient="row")
    return table.with_columns(pl.lit(DAY).alias("date"), pl.lit(0).alias("suspicious"))


def test_best_over_exchanges_with_sizes_summed_at_the_best_price():
    best = best_quotes(
        quotes(
            (1, "P", 100, 5, 0, 0),
            (1, "P", 0, 0, 120, 7),
            (2, "Q", 100, 3, 0, 0),
            (3, "Q", 110, 2, 0, 0),
            (4, "Q", 90, 9, 0, 0),
        )
    )
    assert best["bid"].to_list() == [0.01, 0.01, 0.01, 0.011, 0.01]
    assert best["ask"].to_list() == [None, 0.012, 0.012, 0.012, 0.012]
    assert best["bid_size"].to_list() == [5, 5, 8, 2, 5]


def test_a_newer_quote_withdraws_what_it_locks_or_crosses():
    best = best_quotes(quotes((1, "P", 100, 5, 0, 0), (1, "Q", 90, 4, 0, 0), (2, "Q", 0, 0, 95, 7)))
    assert best.row(2) == (0.009, 0.0095, 4.0, 7.0)


def test_a_day_of_quotes_and_trades():
    table = quotes(
        (1, "P", 100, 5, 0, 0), (1, "P", 0, 0, 120, 7), (2, "P", 100, 5, 0, 0), (3, "P", 110, 5, 0, 0)
    )
    trades = pl.DataFrame({"time_ms": [1, 3, 4], "price_1e4": [120, 120, 110], "size": [1, 2, 3]})
    trades = trades.with_columns(pl.lit(DAY).alias("date"), pl.lit(0).alias("suspicious"))
    day = taq_day(table, trades, "X")
    assert day["kind"].to_list() == ["trade", "quote", "trade", "quote", "trade"]
    assert day["side"].to_list() == [None, None, 1.0, None, -1.0]
    midnight = int(dt.datetime(2013, 10, 7, 4, tzinfo=dt.UTC).timestamp()) * 10**9
    assert day["event_ts_ns"][0] == midnight + 10**6


LOBSTER = pl.DataFrame(
    {
        "time_ns": [34_200_017_459_617, 34_200_189_607_670, 34_200_189_607_671, 34_200_189_607_672],
        "event_type": [5, 1, 3, 7],
        "order_id": [0, 1, 2, 3],
        "size": [1, 21, 21, 0],
        "price": [2_238_200, 2_238_100, 2_238_100, -1],
        "direction": [-1, 1, 1, -1],
        "ask_price_1": [2_239_500, 2_239_500, 2_239_500, 2_239_500],
        "ask_size_1": [100] * 4,
        "bid_price_1": [2_231_800, 2_238_100, -9_999_999_999, 2_231_800],
        "bid_size_1": [100, 21, 0, 100],
    }
)


def test_lobster_rows(tmp_path):
    path = tmp_path / "day.parquet"
    LOBSTER.write_parquet(path)
    with pytest.raises(InputError, match="--instrument and --date"):
        lobster(path)
    frame = lobster(path, "AMZN", dt.date(2012, 6, 21))
    assert frame["kind"].to_list() == ["trade", "quote", "cancel"]
    assert frame.row(0)[3:] == (223.18, 223.95, 100.0, 100.0, 223.82, 1.0, 1.0)
    assert frame["bid"].to_list() == [223.18, 223.81, None]
    frame.write_parquet(tmp_path / "events.parquet")
    assert read_events(tmp_path / "events.parquet", MARKET).select(valid(MARKET).all()).item()


def test_lobsters_own_csv_gives_the_same(tmp_path):
    message = tmp_path / "AMZN_2012-06-21_34200000_57600000_message_1.csv"
    names = ["event_type", "order_id", "size", "price", "direction"]
    lines = (f"34200.{r['time_ns'] - 34_200 * 10**9:09d}," + ",".join(str(r[n]) for n in names)
             for r in LOBSTER.iter_rows(named=True))  # fmt: skip
    message.write_text("\n".join(lines) + "\n")
    book = LOBSTER.select("ask_price_1", "ask_size_1", "bid_price_1", "bid_size_1")
    book.write_csv(tmp_path / message.name.replace("message", "orderbook"), include_header=False)
    LOBSTER.write_parquet(tmp_path / "day.parquet")
    assert lobster(message).equals(lobster(tmp_path / "day.parquet", "AMZN", dt.date(2012, 6, 21)))

"""Market tokens: scale free, in range, the same one event at a time as in a batch, deaf to missing prices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai.events import MARKET
from streamai.kernels import tokens as k

nan = np.nan


def run(kinds, columns):
    n = len(kinds)
    token, side = np.zeros(n, np.int32), np.zeros((n, k.MARKET_SIDE), np.int8)
    start = np.array([0, n])
    k.market_tokens(np.asarray(kinds, np.int32), np.asarray(columns, np.float64), start, token, side)
    return token, side


def walk(n, seed, price=100.0, tick=0.01, lot=1.0):
    """A made stream of quotes, trades and cancels around a random walk of ticks."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(1, 4, n)
    bid = price + tick * np.cumsum(rng.integers(-1, 2, n))
    ask = bid + tick * rng.integers(1, 4, n)
    sizes = lot * rng.integers(1, 50, (2, n))
    sign = rng.choice([-1.0, 1.0, 0.0], n)
    trade = kinds == k.TRADE
    at = np.where(trade, np.where(sign > 0, ask, bid), nan)
    columns = np.stack([bid, ask, *sizes, at, np.where(trade, lot * rng.integers(1, 30, n), nan), sign], 1)
    return kinds, columns


def test_columns_are_those_of_the_schema():
    names = [MARKET.columns[i].name for i in (k.BID, k.ASK, k.BID_SIZE, k.ASK_SIZE, k.PRICE, k.SIZE, k.SIDE)]
    assert names == ["bid", "ask", "bid_size", "ask_size", "price", "size", "side"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_in_range_whatever_is_missing(seed, n):
    kinds, columns = walk(n, seed)
    hole = np.random.default_rng(seed).random(columns.shape) < 0.3
    token, _ = run(kinds, np.where(hole, nan, columns))
    assert ((token >= 0) & (token < k.MARKET_TOKENS)).all()


def test_scale_free():
    """Eighths and powers of two are exact, so the other instrument's ratios are the same numbers."""
    kinds, columns = walk(500, 3, price=64.0, tick=0.125)
    scaled = columns * np.array([16.0, 16.0, 256.0, 256.0, 16.0, 256.0, 1.0])
    for a, b in zip(run(kinds, columns), run(kinds, scaled)):
        np.testing.assert_array_equal(a, b)


def test_batch_free():
    kinds, columns = walk(300, 5)
    token, side = run(kinds, columns)
    book, one = np.zeros(8), np.zeros(k.MARKET_SIDE, np.int8)
    for i in range(300):
        assert k.market_token(kinds[i], columns[i], book, one) == token[i]
        np.testing.assert_array_equal(one, side[i])


def test_event_without_quotes_keeps_the_book():
    book, side = np.zeros(8), np.zeros(8, np.int8)
    k.market_token(k.QUOTE, np.array([99.0, 101.0, 5.0, 15.0, nan, nan, nan]), book, side)
    kept = book[:4].copy()
    k.market_token(k.TRADE, np.array([nan, nan, nan, nan, 101.0, 3.0, 1.0]), book, side)
    np.testing.assert_array_equal(book[:4], kept)
    assert side[0] == -32  # imbalance (5 - 15) / 20, times 4, in sixteenths


def test_first_event_has_no_scale():
    book, side = np.zeros(8), np.ones(8, np.int8)
    k.market_token(k.TRADE, np.array([nan, nan, nan, nan, 101.0, 3.0, 1.0]), book, side)
    assert not side.any() and book[k.SEEN] == 1 and book[k.MEAN_SIZE] == 3


@pytest.mark.parametrize(
    ("bid", "ask", "bid_size", "ask_size", "expected"),
    [
        (10.0, 11.0, 7.0, 4.0, 3.0),  # 3 more at the bid
        (10.0, 11.0, 4.0, 9.0, -5.0),  # 5 more at the ask
        (10.5, 11.0, 6.0, 4.0, 6.0),  # a better bid of 6
        (10.0, 10.5, 4.0, 6.0, -6.0),  # a better ask of 6
        (9.5, 11.0, 6.0, 4.0, -4.0),  # the bid of 4 is gone
        (10.0, 11.5, 4.0, 6.0, 4.0),  # the ask of 4 is gone
    ],
)
def test_order_flow_imbalance(bid, ask, bid_size, ask_size, expected):
    book = np.array([10.0, 11.0, 4.0, 4.0, 0, 0, 0, 0])
    assert k.flow(bid, ask, bid_size, ask_size, book) == expected


def test_token_tells_what_happened():
    """A buy, a sell, a cancel and a quote over the same still book are four tokens."""
    seen = set()
    for kind, sign in ((k.TRADE, 1.0), (k.TRADE, -1.0), (k.CANCEL, nan), (k.QUOTE, nan)):
        book, side = np.zeros(8), np.zeros(8, np.int8)
        still = np.array([10.0, 11.0, 4.0, 4.0, nan, nan, nan])
        k.market_token(k.QUOTE, still, book, side)
        seen.add(k.market_token(kind, np.array([10.0, 11.0, 4.0, 4.0, 10.0, 2.0, sign]), book, side))
    assert len(seen) == 4

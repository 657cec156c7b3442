"""Columns and features of a market: book, trades, order flow. Formulas with their sources.

The book is the best bid and ask after the event, with their sizes. An event without them (a trade
without quotes) leaves what is made of them as it was.
"""

from __future__ import annotations

from typing import Unpack

from streamai.declaration import Expression, Feature
from streamai.feature import Options, aggregate, mean, ratio, total

BOOK = ("bid", "ask", "bid_size", "ask_size")


def mid(bid: str = "bid", ask: str = "ask") -> Expression:
    """(bid + ask) / 2, a price."""
    return Expression("middle", (bid, ask))


def spread_bp(bid: str = "bid", ask: str = "ask") -> Expression:
    """10^4 * (ask - bid) / mid."""
    return Expression("spread_bp", (bid, ask))


def queue_imbalance(bid_size: str = "bid_size", ask_size: str = "ask_size") -> Expression:
    """(bid_size - ask_size) / (bid_size + ask_size), -1..1; NaN where both are 0 (Gould and Bonart 2016)."""
    return Expression("imbalance", (bid_size, ask_size))


def depth(bid_size: str = "bid_size", ask_size: str = "ask_size") -> Expression:
    """(bid_size + ask_size) / 2, shares at the best prices."""
    return Expression("middle", (bid_size, ask_size))


def microprice(
    bid: str = "bid", ask: str = "ask", bid_size: str = "bid_size", ask_size: str = "ask_size"
) -> Expression:
    """The weighted mid, (ask * bid_size + bid * ask_size) / (bid_size + ask_size), a price.

    The first-order form, which needs no fit; not the fitted martingale of Stoikov 2018. NaN where both are 0.
    """
    return Expression("weighted_mid", (bid, ask, bid_size, ask_size))


def order_flow(
    bid: str = "bid", ask: str = "ask", bid_size: str = "bid_size", ask_size: str = "ask_size"
) -> Expression:
    """e_n of Cont, Kukanov and Stoikov 2014, in shares: what the event did to the bid less what to the ask.

    e_n = [b_n >= b_(n-1)] qb_n - [b_n <= b_(n-1)] qb_(n-1)
        - [a_n <= a_(n-1)] qa_n + [a_n >= a_(n-1)] qa_(n-1)
    From one event with a whole book to the next, by arrival; 0 for the first; NaN for one that comes late.
    """
    return Expression("order_flow", (bid, ask, bid_size, ask_size))


def log_return(of: str | Expression | None = None) -> Expression:
    """log(price / price of the event before), of the mid or `of`; by arrival, as `order_flow`."""
    return Expression("log_return", (mid() if of is None else of,))


def signed_size(side: str = "side", size: str = "size") -> Expression:
    """side * size of a trade, shares: positive where the buyer came to the seller."""
    return Expression("product", (side, size))


def ofi(window: str | None = None, *, normalised: bool = False, **o: Unpack[Options]) -> Feature:
    """Order-flow imbalance: sum of `order_flow`, in shares; with normalised=True divided by the mean depth
    of the same events, so that instruments compare."""
    shares = total(order_flow(), window, **o)
    return ratio(shares, mean(depth(), window, **o)) if normalised else shares


def vwap(
    window: str | None = None, *, price: str = "price", size: str = "size", **o: Unpack[Options]
) -> Feature:
    """Volume-weighted average price, sum(price * size) / sum(size). NaN without volume."""
    return aggregate("vwap", "weighted_mean", "weighted", price, window, o, weight=size)


def trade_imbalance(
    window: str | None = None, *, side: str = "side", size: str = "size", **o: Unpack[Options]
) -> Feature:
    """sum(side * size) / sum(size) of the trades whose side is known, -1..1. NaN without volume."""
    return aggregate("trade_imbalance", "weighted_mean", "weighted", side, window, o, weight=size)


def realised_vol(
    window: str | None = None, *, of: str | Expression | None = None, **o: Unpack[Options]
) -> Feature:
    """sqrt(sum of squared `log_return`), of the mid unless told otherwise; a fraction, not annualised.

    With half_life the sum is of decayed squares. NaN before the first price; 0 at it.
    """
    return aggregate("realised_vol", "root", "sum", Expression("square", (log_return(of),)), window, o)


__all__ = [
    "depth",
    "log_return",
    "microprice",
    "mid",
    "ofi",
    "order_flow",
    "queue_imbalance",
    "realised_vol",
    "signed_size",
    "spread_bp",
    "trade_imbalance",
    "vwap",
]

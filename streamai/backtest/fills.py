"""From targets to fills, positions and profit and loss: taker orders at the best prices, after a latency.

What is assumed: every order is filled whole at the touch (no queue, no partial fill, no market impact), so
results are only meaningful for sizes far below what the book shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamai.errors import InputError
from streamai.kernels import fills as kernel

FILL = np.dtype(
    [
        ("event", "i8"),
        ("book_event", "i8"),
        ("instrument", "i4"),
        ("fill_ts_ns", "i8"),
        ("quantity", "f8"),
        ("price", "f8"),
        ("position", "f8"),
    ]
)
"""One fill: the event whose target it serves, the event after which the book stood that filled it, index of
the instrument, time, signed quantity, price, position after it."""


@dataclass(frozen=True)
class Account:
    """What one instrument did, or all together. Money in the currency of the prices, times in ns.

    gross         cash + position at the last mid, before fees; net = gross - fees
    notional      sum of quantity * price over the fills (turnover)
    spread_cost   paid against the mid at the fill; slippage: against the touch at the decision
    round_trips   from flat, or a change of sign, to the next; hits: those with a gain after fees
    closed_gain   net gain of the round trips
    held_ns       sum of their durations; in_position_ns: time with a position, also an open one
    span_ns       first to last event; exposure: integral of |position| * mid over time, currency * s
    """

    fills: int
    unfilled: int
    position: float
    gross: float
    fees: float
    net: float
    notional: float
    spread_cost: float
    slippage: float
    round_trips: int
    hits: int
    closed_gain: float
    held_ns: int
    in_position_ns: int
    span_ns: int
    exposure: float

    @property
    def hit_ratio(self) -> float | None:
        return self.hits / self.round_trips if self.round_trips else None

    @property
    def holding_ns(self) -> float | None:
        """Mean time a round trip is held."""
        return self.held_ns / self.round_trips if self.round_trips else None

    def bp(self, money: float) -> float | None:
        """An amount in basis points of the turnover."""
        return 1e4 * money / self.notional if self.notional else None


@dataclass(frozen=True)
class Result:
    """Of one simulation: all together, each instrument by index, the fills, and the worst fall of the equity.

    max_drawdown   largest fall of the net equity from its peak so far, marked at every event
    """

    total: Account
    accounts: tuple[Account, ...]
    fills: np.ndarray
    max_drawdown: float


def simulate(
    instrument: np.ndarray,
    ts_ns: np.ndarray,
    bid: np.ndarray,
    ask: np.ndarray,
    target: np.ndarray,
    latency_ns: np.ndarray,
    fee_bp: float = 0.0,
    size: float = 1.0,
) -> Result:
    """Trade `target` over events in arrival order; see kernels/fills.py for what an order may see.

    instrument  int[n], 0..K-1
    ts_ns       i8[n] event time
    bid, ask    f8[n] best prices after the event, NaN where it does not tell
    target      f8[n] wanted position in units of `size`, NaN = no change
    latency_ns  i8[n] or one number: from the event to the moment its order reaches the book
    fee_bp      of the notional of each fill; negative = a rebate

    InputError on negative latency, infinite targets, or a size that is not positive.
    """
    n = len(ts_ns)
    latency_ns = np.broadcast_to(np.asarray(latency_ns, np.int64), (n,))
    if n and latency_ns.min() < 0:
        raise InputError(f"latency of event {int(latency_ns.argmin())} is negative: {latency_ns.min()} ns")
    if np.isinf(target).any():
        raise InputError(f"target of event {int(np.isinf(target).argmax())} is infinite; NaN means no change")
    if not size > 0:
        raise InputError(f"size is {size}; it is the quantity of one unit of target and must be positive")
    instrument = np.ascontiguousarray(instrument, np.int32)
    bid, ask, target = (np.ascontiguousarray(a, np.float64) for a in (bid, ask, target))
    instruments = int(instrument.max()) + 1 if n else 0
    money = np.empty((instruments, kernel.MONEY))
    clock = np.empty((instruments, kernel.CLOCK), np.int64)
    equity = np.empty(3)
    kernel.start(money, clock, equity)
    orders = kernel.count_orders(instrument, target, size, np.empty(instruments))
    orders_i, orders_f = np.empty((orders, 4), np.int64), np.empty((orders, 4))
    kernel.walk(
        instrument,
        np.ascontiguousarray(ts_ns, np.int64),
        bid,
        ask,
        target,
        np.ascontiguousarray(latency_ns),
        fee_bp * 1e-4,
        float(size),
        money,
        clock,
        equity,
        orders_i,
        orders_f,
    )
    return _result(instrument, money, clock, equity, orders_i, orders_f)


def _result(instrument, money, clock, equity, orders_i, orders_f) -> Result:
    filled = orders_i[:, 1] >= 0
    fills = np.empty(int(filled.sum()), FILL)
    fills["event"], fills["book_event"], fills["fill_ts_ns"] = orders_i[filled, :3].T
    fills["quantity"], fills["position"], _, fills["price"] = orders_f[filled].T
    fills["instrument"] = instrument[fills["event"]]
    unfilled = np.bincount(instrument[orders_i[~filled, 0]], minlength=len(money))
    accounts = tuple(_account(money[k], clock[k], int(unfilled[k])) for k in range(len(money)))
    return Result(_sum(accounts), accounts, fills, float(equity[kernel.DRAWDOWN]))


def _account(money: np.ndarray, clock: np.ndarray, unfilled: int) -> Account:
    net, fees = float(money[kernel.VALUE]), float(money[kernel.FEES])
    return Account(
        fills=int(clock[kernel.FILLS]),
        unfilled=unfilled,
        position=float(money[kernel.POSITION]),
        gross=net + fees,
        fees=fees,
        net=net,
        notional=float(money[kernel.NOTIONAL]),
        spread_cost=float(money[kernel.SPREAD_COST]),
        slippage=float(money[kernel.SLIPPAGE]),
        round_trips=int(clock[kernel.TRIPS]),
        hits=int(clock[kernel.HITS]),
        closed_gain=float(money[kernel.TRIP_GAIN]),
        held_ns=int(clock[kernel.HELD_NS]),
        in_position_ns=int(clock[kernel.IN_POSITION_NS]),
        span_ns=int(clock[kernel.NOW] - clock[kernel.FIRST]),
        exposure=float(money[kernel.EXPOSURE]),
    )


def _sum(accounts: tuple[Account, ...]) -> Account:
    """All instruments together: every field is a sum, in the order of the instruments."""
    names = Account.__dataclass_fields__
    zero = {n: 0.0 if f.type == "float" else 0 for n, f in names.items()}
    return Account(**{n: sum((getattr(a, n) for a in accounts), zero[n]) for n in names})

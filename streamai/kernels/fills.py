"""Targets become orders, orders are filled at the touch after their latency: one pass over the events.

What an order may see: decided at event i of its instrument, it is due at the instrument's time then plus its
latency, and takes the best price that stands at that moment: the book after the last event at or before
it. No event after it is looked at, and no book that was older than one known by then. Where the side it needs
has never been quoted, it waits for the first quote that has it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from streamai.kernels import leaf

# money[instrument]: f8
POSITION, SENT, CASH, FEES, NOTIONAL, BID, ASK, MID, VALUE = 0, 1, 2, 3, 4, 5, 6, 7, 8
TRIP, TRIP_GAIN, SPREAD_COST, SLIPPAGE, EXPOSURE = 9, 10, 11, 12, 13
MONEY = 14
# clock[instrument]: i8
NOW, SINCE, FIRST, OPENED, DUE, BOOK, HEAD, TAIL, FILLS, TRIPS, HITS, HELD_NS, IN_POSITION_NS = range(13)
CLOCK = 13
# equity: f8
NET, PEAK, DRAWDOWN = 0, 1, 2


@njit(**leaf)
def start(money, clock, equity):
    """Empty ledgers: no position, no quote, no order."""
    money[:] = 0.0
    money[:, BID] = np.nan
    money[:, ASK] = np.nan
    money[:, MID] = np.nan
    clock[:] = 0
    clock[:, NOW] = -1
    clock[:, HEAD] = -1
    clock[:, TAIL] = -1
    equity[:] = 0.0


@njit(**leaf)
def count_orders(instrument, target, size, sent):
    """Number of orders that `walk` will make; `sent` f8[K] is scratch."""
    sent[:] = 0.0
    orders = 0
    for i in range(len(target)):
        level = target[i] * size
        if not np.isnan(level) and level != sent[instrument[i]]:
            sent[instrument[i]] = level
            orders += 1
    return orders


@njit(**leaf)
def walk(
    instrument, ts_ns, bid, ask, target, latency_ns, fee_rate, size, money, clock, equity, orders_i, orders_f
):
    """All events in arrival order; returns the number of orders (see `count_orders`).

    instrument  i4[n]; ts_ns i8[n]; bid, ask f8[n], NaN = this event does not tell
    target      f8[n], position wanted in units of `size`, NaN = no change; latency_ns i8[n] >= 0
    fee_rate    of the notional of a fill
    money f8[K, MONEY], clock i8[K, CLOCK], equity f8[3]: made by `start`, changed in place
    orders_i    i8[orders, 4]: event of the decision, event of its fill's book (-1: none), time, next order
    orders_f    f8[orders, 4]: quantity, position after it, touch at the decision, fill price

    An instrument's time is the newest event time seen of it. Orders of an instrument keep their sequence.
    """
    orders = 0
    for i in range(len(ts_ns)):
        k = instrument[i]
        now = ts_ns[i]
        if clock[k, NOW] < 0:
            clock[k, FIRST] = now
            clock[k, SINCE] = now
        else:
            now = max(now, clock[k, NOW])
        waiting = clock[k, HEAD] >= 0  # asked here: most events find no order, and a call is not free
        if waiting:
            _fill_due(k, now, fee_rate, money, clock, equity, orders_i, orders_f)
        _hold(k, now, money, clock)
        clock[k, NOW] = now
        clock[k, BOOK] = i
        if not np.isnan(bid[i]):
            money[k, BID] = bid[i]
        if not np.isnan(ask[i]):
            money[k, ASK] = ask[i]
        if not (np.isnan(money[k, BID]) or np.isnan(money[k, ASK])):
            money[k, MID] = 0.5 * (money[k, BID] + money[k, ASK])
        _mark(k, money, equity)
        if waiting:  # those whose side had not been quoted
            _fill_due(k, now, fee_rate, money, clock, equity, orders_i, orders_f)
        level = target[i] * size
        if not np.isnan(level) and level != money[k, SENT]:
            _send(orders, k, i, level, now + latency_ns[i], money, clock, orders_i, orders_f)
            orders += 1
    for k in range(len(money)):  # time has reached its last event: what was due by then is filled
        _fill_due(k, clock[k, NOW] + 1, fee_rate, money, clock, equity, orders_i, orders_f)
    return orders


@njit(**leaf)
def _send(o, k, i, level, due, money, clock, orders_i, orders_f):
    """Order o, decided at event i, brings the position to `level`; it joins its instrument's queue."""
    due = max(due, clock[k, DUE])  # no order overtakes an earlier one
    orders_i[o, 0] = i
    orders_i[o, 1] = -1
    orders_i[o, 2] = due
    orders_i[o, 3] = -1
    orders_f[o, 0] = level - money[k, SENT]
    orders_f[o, 1] = level
    orders_f[o, 2] = money[k, ASK] if level > money[k, SENT] else money[k, BID]
    orders_f[o, 3] = np.nan
    money[k, SENT] = level
    clock[k, DUE] = due
    if clock[k, HEAD] < 0:
        clock[k, HEAD] = o
    else:
        orders_i[clock[k, TAIL], 3] = o
    clock[k, TAIL] = o


@njit(**leaf)
def _fill_due(k, before_ns, fee_rate, money, clock, equity, orders_i, orders_f):
    """Fill the orders due before a time at the quotes that stand."""
    while clock[k, HEAD] >= 0:
        o = clock[k, HEAD]
        quantity = orders_f[o, 0]
        price = money[k, ASK] if quantity > 0 else money[k, BID]
        if orders_i[o, 2] >= before_ns or np.isnan(price):
            return
        at = max(orders_i[o, 2], clock[k, NOW])
        orders_i[o, 1] = clock[k, BOOK]
        orders_i[o, 2] = at
        orders_f[o, 3] = price
        _hold(k, at, money, clock)
        _book_fill(k, at, quantity, orders_f[o, 1], price, fee_rate, money, clock)
        if not np.isnan(orders_f[o, 2]):
            money[k, SLIPPAGE] += quantity * (price - orders_f[o, 2])
        _mark(k, money, equity)
        clock[k, HEAD] = orders_i[o, 3]


@njit(**leaf)
def _hold(k, now, money, clock):
    """Time passes with the position as it is."""
    if money[k, POSITION] != 0.0:
        passed = now - clock[k, SINCE]
        clock[k, IN_POSITION_NS] += passed
        if not np.isnan(money[k, MID]):
            money[k, EXPOSURE] += abs(money[k, POSITION]) * money[k, MID] * (passed * 1e-9)
    clock[k, SINCE] = now


@njit(**leaf)
def _book_fill(k, at, quantity, level, price, fee_rate, money, clock):
    """Cash, fees, position and the round trip (from flat or a change of sign to the next) of one fill."""
    position = money[k, POSITION]
    notional = abs(quantity) * price
    money[k, CASH] -= quantity * price
    money[k, FEES] += fee_rate * notional
    money[k, NOTIONAL] += notional
    if not np.isnan(money[k, MID]):
        money[k, SPREAD_COST] += quantity * (price - money[k, MID])
    clock[k, FILLS] += 1
    opening = quantity
    if position != 0.0 and position * level <= 0.0:  # the old position is closed
        gain = money[k, TRIP] + position * price - fee_rate * abs(position) * price
        money[k, TRIP_GAIN] += gain
        money[k, TRIP] = 0.0
        clock[k, TRIPS] += 1
        clock[k, HITS] += gain > 0.0
        clock[k, HELD_NS] += at - clock[k, OPENED]
        opening = level
        position = 0.0
    if opening != 0.0:
        if position == 0.0:
            clock[k, OPENED] = at
        money[k, TRIP] -= opening * price + fee_rate * abs(opening) * price
    money[k, POSITION] = level


@njit(**leaf)
def _mark(k, money, equity):
    """Value of the instrument at its mid into the equity; peak and drawdown of the whole, net of fees."""
    value = money[k, CASH] - money[k, FEES]
    if money[k, POSITION] != 0.0:
        mid = money[k, MID]
        if np.isnan(mid):  # one side only was ever quoted: marked at it
            mid = money[k, ASK] if np.isnan(money[k, BID]) else money[k, BID]
        value += money[k, POSITION] * mid
    equity[NET] += value - money[k, VALUE]
    money[k, VALUE] = value
    equity[PEAK] = max(equity[PEAK], equity[NET])
    equity[DRAWDOWN] = max(equity[DRAWDOWN], equity[PEAK] - equity[NET])

"""Derived columns: what is worked out of an event's own columns, before any window sees it.

Some keep the previous price or book of the key in cells. These go by arrival: an event older than the
key's newest has no return and no order flow (NaN), and is not remembered. The first has 0.
"""

import numpy as np
from numba import njit

from streamai.kernels import leaf
from streamai.kernels.maths import bits_of_f8, log_f8
from streamai.kernels.panes import inlined

MIDDLE = 1  # (a + b) / 2
WEIGHTED_MID = 2  # (ask * bid_size + bid * ask_size) / (bid_size + ask_size)
IMBALANCE = 3  # (a - b) / (a + b)
SPREAD_BP = 4  # 1e4 * (b - a) / ((a + b) / 2)
ORDER_FLOW = 5  # Cont, Kukanov and Stoikov 2014, from two books
LOG_RETURN = 6  # log(a / previous a)
SQUARE = 7
PRODUCT = 8
ITEM_HASH = 9  # 52 bits of the item's hash; NaN without item
VALUE_HASH = 10  # 52 bits of the value's hash

CELLS = {ORDER_FLOW: 5, LOG_RETURN: 1}


@njit(**inlined)
def _mix(h):
    """MurmurHash3's finaliser, the upper 52 bits: they fit a float64 exactly."""
    h = np.uint64(h)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return np.float64(h >> np.uint64(12))


@njit(**inlined)
def order_flow(cells, at, bid, ask, bid_size, ask_size):
    """What the change of the book since the last call added to the bid less what it added to the ask.

    Shares. cells at..at+4: 1 once a book was seen, then its bid, ask, bid_size, ask_size.
    """
    e = 0.0
    if cells[at] != 0.0:
        if bid >= cells[at + 1]:
            e += bid_size
        if bid <= cells[at + 1]:
            e -= cells[at + 3]
        if ask <= cells[at + 2]:
            e -= ask_size
        if ask >= cells[at + 2]:
            e += cells[at + 4]
    cells[at] = 1.0
    cells[at + 1] = bid
    cells[at + 2] = ask
    cells[at + 3] = bid_size
    cells[at + 4] = ask_size
    return e


@njit(**inlined)
def log_return(cells, at, price):
    """log(price / previous price); 0 for the first. cells[at] keeps the price."""
    if not price > 0.0:
        return np.nan
    previous = cells[at]
    cells[at] = price
    return 0.0 if previous == 0.0 or previous == price else log_f8(price / previous)


@njit(**leaf)
def of_event(derived, d, cells, x, kind, item_hash, old):
    """Value of derived column d; NaN for kind -1, which is no event.

    derived[d]: op, four indices into x, mask of kinds, cell.
    """
    op = derived[d, 0]
    if kind < 0 or (derived[d, 5] >> kind) & 1 == 0:
        return np.nan
    a = x[derived[d, 1]]
    b = x[derived[d, 2]]
    if op == MIDDLE:
        return 0.5 * (a + b)
    if op == LOG_RETURN:
        return log_return(cells, derived[d, 6], a) if a == a and not old else np.nan
    if op == SQUARE:
        return a * a
    if op == ITEM_HASH:
        return _mix(item_hash) if item_hash != 0 else np.nan
    if op == VALUE_HASH:
        return _mix(bits_of_f8(a + 0.0)) if a == a else np.nan
    if op == IMBALANCE:
        return (a - b) / (a + b) if a + b != 0.0 else np.nan
    if op == SPREAD_BP:
        return 2e4 * (b - a) / (a + b)
    if op == PRODUCT:
        return a * b
    bid_size = x[derived[d, 3]]
    ask_size = x[derived[d, 4]]
    if op == WEIGHTED_MID:
        depth = bid_size + ask_size
        return (b * bid_size + a * ask_size) / depth if depth > 0.0 else np.nan
    whole = a == a and b == b and bid_size == bid_size and ask_size == ask_size
    return order_flow(cells, derived[d, 6], a, b, bid_size, ask_size) if whole and not old else np.nan

"""One market event as one token: a mixed-radix code over scale-free bins, and eight continuous inputs.

Nothing in it depends on the instrument's price, tick or lot: sizes are relative to the key's own running mean
size, spreads to its running spread, moves to its running move (research: TradeFM's code, LOBERT's side
features). The running values live in the key's row, `book`:

    0 bid  1 ask  2 bid_size  3 ask_size  4 mean size  5 mean spread  6 mean |move| of the mid  7 events seen

A book of zeros has seen nothing. An event without a price keeps the one before.
"""

import numpy as np
from numba import njit

from streamai.kernels import jit
from streamai.kernels.maths import log_f8

BID, ASK, BID_SIZE, ASK_SIZE, PRICE, SIZE, SIDE = range(7)
"""Columns of a market event, in the order of `events.MARKET`."""
MEAN_SIZE, MEAN_SPREAD, MEAN_MOVE, SEEN = 4, 5, 6, 7

CLASSES, MOVES, SPREADS, IMBALANCES, SIZES = 5, 9, 2, 5, 2
MARKET_TOKENS = CLASSES * MOVES * SPREADS * IMBALANCES * SIZES
"""900: what happened x how the best prices moved x spread x queue imbalance x size."""
MARKET_SIDE = 8

QUOTE, TRADE, CANCEL = 1, 2, 3
MEMORY = 1.0 / 64.0


@njit(inline="always", **jit)
def _clip(x):
    """A side feature to its stored form, sixteenths in one byte; NaN is 0."""
    x = x * 16.0
    if not (x > -127.0):
        return np.int8(-127) if x == x else np.int8(0)
    if x > 127.0:
        return np.int8(127)
    return np.int8(np.floor(x + 0.5))


@njit(inline="always", **jit)
def _slog(x):
    """Sign(x) log(1 + |x|)."""
    return log_f8(1.0 + x) if x >= 0 else -log_f8(1.0 - x)


@njit(inline="always", **jit)
def _known(x, before):
    return x if x == x else before


@njit(inline="always", **jit)
def _direction(x, before):
    """0 lower, 1 the same or not known, 2 higher."""
    if before == 0.0 or x == before:
        return 1
    return 2 if x > before else 0


@njit(**jit)
def flow(bid, ask, bid_size, ask_size, book):
    """Order-flow imbalance of one event (Cont, Kukanov, Stoikov): what came to the bid less what came to the
    ask, in units of size; 0 until both sides have been seen."""
    if book[BID] == 0.0 or book[ASK] == 0.0:
        return 0.0
    e = 0.0
    if bid >= book[BID]:
        e += bid_size
    if bid <= book[BID]:
        e -= book[BID_SIZE]
    if ask <= book[ASK]:
        e -= ask_size
    if ask >= book[ASK]:
        e += book[ASK_SIZE]
    return e


@njit(inline="always", **jit)
def _learn(book, cell, x, rate):
    """Move a running mean towards x; the first value is taken whole."""
    if book[cell] == 0.0:
        book[cell] = x
    else:
        book[cell] += rate * (x - book[cell])


@njit(**jit)
def market_token(kind, x, book, side):
    """The token (0 .. MARKET_TOKENS - 1) of an event; `book` f8[8] takes the event in, side i1[8] is filled.

    x f8[C] has the columns of `events.MARKET` first; NaN = missing. The scales used are those from before
    the event. side (value = i1 / 16): queue imbalance x 4, OFI, log spread, signed trade size, microprice
    less mid, move of the mid, log depth, trade price less the last mid; sizes and moves relative, log scaled.
    """
    bid, ask = _known(x[BID], book[BID]), _known(x[ASK], book[ASK])
    bid_size, ask_size = _known(x[BID_SIZE], book[BID_SIZE]), _known(x[ASK_SIZE], book[ASK_SIZE])
    price, size = x[PRICE], _known(x[SIZE], 0.0)
    sign = _known(x[SIDE], 0.0)

    e = flow(bid, ask, bid_size, ask_size, book)
    up = _direction(bid, book[BID]) * 3 + _direction(ask, book[ASK])
    depth = bid_size + ask_size
    imbalance = (bid_size - ask_size) / depth if depth > 0.0 else 0.0
    both, before = bid > 0.0 and ask > 0.0, book[BID] > 0.0 and book[ASK] > 0.0
    mid, spread = 0.5 * (bid + ask), max(ask - bid, 0.0)
    last_mid = 0.5 * (book[BID] + book[ASK])
    move = mid - last_mid if both and before else 0.0
    scale_size, scale_spread, scale_move = book[MEAN_SIZE], book[MEAN_SPREAD], book[MEAN_MOVE]

    if kind == TRADE:
        what = 1 if sign > 0.0 else (2 if sign < 0.0 else 3)
        amount = size
    else:
        what = 4 if kind == CANCEL else 0
        amount = abs(e)
    wide = 1 if both and scale_spread > 0.0 and spread > 1.25 * scale_spread else 0
    tilt = min(IMBALANCES - 1, int((imbalance + 1.0) * 0.5 * IMBALANCES))
    large = 1 if scale_size > 0.0 and amount > scale_size else 0
    token = (((what * MOVES + up) * SPREADS + wide) * IMBALANCES + tilt) * SIZES + large

    side[0] = _clip(4.0 * imbalance)
    side[1] = _clip(2.0 * _slog(e / scale_size)) if scale_size > 0.0 else np.int8(0)
    some = both and scale_spread > 0.0
    side[2] = _clip(2.0 * log_f8(max(spread / scale_spread, 0.02))) if some else np.int8(0)
    traded = kind == TRADE and scale_size > 0.0
    side[3] = _clip(2.0 * _slog(sign * size / scale_size)) if traded else np.int8(0)
    side[4] = _clip(4.0 * imbalance * spread / scale_spread) if some else np.int8(0)
    side[5] = _clip(3.0 * _slog(move / scale_move)) if scale_move > 0.0 else np.int8(0)
    deep = scale_size > 0.0 and depth > 0.0
    side[6] = _clip(2.0 * log_f8(depth / scale_size)) if deep else np.int8(0)
    priced = before and price == price and scale_spread > 0.0
    side[7] = _clip(4.0 * _slog((price - last_mid) / scale_spread)) if priced else np.int8(0)

    # the first events weigh alike, so that a scale is near its mean after a few of them
    book[SEEN] += 1.0
    rate = max(MEMORY, 1.0 / book[SEEN])
    if amount > 0.0:
        _learn(book, MEAN_SIZE, amount, rate)
    if both and spread > 0.0:
        _learn(book, MEAN_SPREAD, spread, rate)
    if move != 0.0:
        _learn(book, MEAN_MOVE, abs(move), rate)
    book[BID], book[ASK], book[BID_SIZE], book[ASK_SIZE] = bid, ask, bid_size, ask_size
    return token


@njit(**jit)
def market_tokens(kind, columns, start, token, side):
    """Tokens of whole sequences: key k has events start[k] .. start[k + 1] of kind i4[N], columns f8[N, C];
    fills token i4[N], side i1[N, 8]."""
    book = np.zeros(8)
    for k in range(start.size - 1):
        book[:] = 0.0
        for i in range(start[k], start[k + 1]):
            token[i] = market_token(kind[i], columns[i], book, side[i])

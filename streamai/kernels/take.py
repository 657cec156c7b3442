"""The part of a step that every flow has: late or not, dirty rows, features of the key and of the item.

A leaf: arrays come one by one, so that numba counts no references to them. A features-only flow takes a
whole batch in one call and is bound by memory, hence the prefetch.
"""

import numpy as np
from numba import njit

from . import leaf, lm, windows
from .context import DIRTY_ITEMS, DIRTY_KEYS, LATE_TOTAL, WATERMARK
from .prefetch import LINE_CELLS, prefetch

SCORED, LATE = 0, 1
AHEAD = 6
"""Events between asking for a row and using it."""
LINES = 6
"""Cache lines of a row asked for: header, book and the first windows."""
_NAN = np.float32(np.nan)


@njit(**leaf)
def ask(flat_f8, row_cells, slot):
    """Begin to load the head of a slot's row; flat_f8 is the slab as one f8[...]."""
    at = np.int64(slot) * row_cells
    for line in range(LINES):
        if line * LINE_CELLS < row_cells:
            prefetch(flat_f8, at + line * LINE_CELLS)


@njit(**leaf)
def mark(flags, listed, clock, which, number):
    """Enter row `which` in the list of dirty ones, once."""
    if flags[which] == 0:
        flags[which] = 1
        listed[clock[number]] = which
        clock[number] += 1


@njit(**leaf)
def push(row_u1, row_i8, ring_at, ring, entry, token, kind, gap, side, sides):
    """Write the event into a row's ring and count it; side i1[sides] in sixteenths."""
    at = ring_at + (row_i8[1] % ring) * entry
    for b in range(4):
        row_u1[at + b] = (np.int64(token) >> (8 * b)) & 255
    row_u1[at + 4] = kind
    row_u1[at + 5] = gap
    for s in range(sides):
        row_u1[at + 6 + s] = np.uint8(side[s])
    row_i8[1] += 1


@njit(**leaf)
def take(
    rows, columns, first, last, alone, disorder, plan_at, plan_cells, key_f, item_f, slots, status, features,
    gaps, x, clock, dirty, dirty_slots, recent, flat_f8, rows_f8, rows_i8, rows_u1, ring_at, ring, entry,
    no_side,
    derived, derived_p, acc, acc_p, out, out_p,
    item_dirty, item_dirty_list, items_f8, items_i8,
    item_derived, item_derived_p, item_acc, item_acc_p, item_out, item_out_p,
):  # fmt: skip
    """Events first .. last - 1: status, features, gap bucket; marks rows dirty, moves the watermark.

    alone: the flow has nothing but features, so the ring is written here too; else the caller goes on with
    the event and calls `push`. Array names as in `context`; gaps i4[B] is the time gap's bucket.
    """
    row_cells = rows_f8.shape[1]
    for i in range(first, last):
        if i + AHEAD < rows.shape[0]:
            ask(flat_f8, row_cells, slots[i + AHEAD])
        t, slot = rows[i].event_ts_ns, slots[i]
        f = features[i]
        if t < clock[WATERMARK] - disorder:
            status[i] = LATE
            clock[LATE_TOTAL] += 1
            for k in range(f.size):
                f[k] = _NAN
            continue
        status[i] = SCORED
        clock[WATERMARK] = max(clock[WATERMARK], t)
        mark(dirty, dirty_slots, clock, slot, DIRTY_KEYS)
        recent[slot] = 1
        cells_f8, cells_i8 = rows_f8[slot], rows_i8[slot]
        newest = cells_i8[0]
        gaps[i] = 0 if cells_i8[1] == 0 else lm.gap_bucket(t - newest)
        token = np.uint64(rows[i].item_hash)
        if key_f > 0:
            windows.update(
                derived, derived_p, acc, acc_p, out, out_p, cells_f8[plan_at : plan_at + plan_cells],
                cells_i8[plan_at : plan_at + plan_cells], t, newest, rows[i].kind, token, columns[i], x,
                f[:key_f],
            )  # fmt: skip
        if item_f > 0:
            item = rows[i].item
            if item >= 0:
                mark(item_dirty, item_dirty_list, clock, item, DIRTY_ITEMS)
                item_newest = items_i8[item, 0]
                windows.update(
                    item_derived, item_derived_p, item_acc, item_acc_p, item_out, item_out_p,
                    items_f8[item, 1:], items_i8[item, 1:], t, item_newest, rows[i].kind, token, columns[i],
                    x, f[key_f:],
                )  # fmt: skip
                items_i8[item, 0] = max(item_newest, t)
            else:
                for k in range(key_f, f.size):
                    f[k] = _NAN
        cells_i8[0] = max(newest, t)
        if alone:
            mine = lm.token_of(rows[i].item, rows[i].item_hash)
            push(rows_u1[slot], cells_i8, ring_at, ring, entry, mine, rows[i].kind, gaps[i], no_side, 0)

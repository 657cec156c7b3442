"""Exact windows: the events themselves in a ring sorted by time, with two stacks of aggregates.

Cells of a window: head, size, split, overflow (integers), the pane of the back, the pane of the result,
then `most` entries. Entry = time and the pane without its n. The oldest `split` entries (the front) hold,
in place of their own value, the aggregate from themselves to the end of the front; the newer ones (the
back) hold their own value, and their pane is kept beside. So nothing is subtracted, an event costs a
constant number of merges on average (the front is rebuilt when used up: `most` merges at the worst), and
an event that comes out of order is put at its place: two-stacks lite (Tangwongsan, Hirzel, Schneider,
"In-order sliding-window aggregation in worst-case constant time", 2021).
"""

from numba import njit

from streamai.kernels import leaf, panes
from streamai.kernels.panes import COUNT, FIRST, LAST, WEIGHTED, clear, inlined, load, merge, store

HEAD, SIZE, SPLIT, OVERFLOW, BACK = 0, 1, 2, 3, 4


def entry_cells(agg):
    """Cells of one entry."""
    return 2 if agg in (FIRST, LAST) else panes.CELLS[agg]


@njit(**inlined)
def _place(base, ring, head, i, most, width):
    """Cell of the i-th oldest entry."""
    j = head + i
    if j >= most:
        j -= most
    return base + ring + j * width


@njit(**inlined)
def _value(cells, at, width):
    """An entry without its time, as the last two numbers of a pane."""
    return (cells[at + 1] if width > 1 else 0.0), (cells[at + 2] if width > 2 else 0.0)


@njit(**inlined)
def _set_value(cells, at, width, a, b):
    if width > 1:
        cells[at + 1] = a
    if width > 2:
        cells[at + 2] = b


@njit(**leaf)
def _flip(agg, cells, cells_i8, base, ring, most, width, size):
    """The back becomes the front: each entry takes the aggregate from itself to the newest."""
    head, count = cells_i8[base + HEAD], cells_i8[base + SIZE]
    n, a, b = 0.0, 0.0, 0.0
    for i in range(count - 1, -1, -1):
        at = _place(base, ring, head, i, most, width)
        a1, b1 = _value(cells, at, width)
        n, a, b = merge(agg, 1.0, a1, b1, n, a, b)
        _set_value(cells, at, width, a, b)
    cells_i8[base + SPLIT] = count
    clear(cells, base + BACK, size)


@njit(**inlined)
def _drop_oldest(agg, stacked, cells, cells_i8, base, ring, most, width, size):
    if stacked:
        if cells_i8[base + SPLIT] == 0:
            _flip(agg, cells, cells_i8, base, ring, most, width, size)
        cells_i8[base + SPLIT] -= 1
    head = cells_i8[base + HEAD] + 1
    cells_i8[base + HEAD] = 0 if head == most else head
    cells_i8[base + SIZE] -= 1


@njit(**inlined)
def _insert(agg, stacked, cells, cells_i8, base, ring, most, width, size, v, w, t):
    """Put an event at its place by time, after those of equal time. There is room."""
    head, count, split = cells_i8[base + HEAD], cells_i8[base + SIZE], cells_i8[base + SPLIT]
    a, b = (w * v, w) if agg == WEIGHTED else (v, 0.0)
    p = count
    while p > 0 and cells_i8[_place(base, ring, head, p - 1, most, width)] > t:
        source = _place(base, ring, head, p - 1, most, width)
        target = _place(base, ring, head, p, most, width)
        for j in range(width):
            cells[target + j] = cells[source + j]
        p -= 1
    at = _place(base, ring, head, p, most, width)
    cells_i8[at] = t
    _set_value(cells, at, width, a, b)
    cells_i8[base + SIZE] = count + 1
    if not stacked:
        return
    if p >= split:
        n1, a1, b1 = load(cells, base + BACK, size)
        n, a, b = merge(agg, n1, a1, b1, 1.0, a, b)
        store(cells, base + BACK, size, n, a, b)
        return
    n2 = float(split - p)
    a2, b2 = _value(cells, _place(base, ring, head, p + 1, most, width), width)
    n2, a2, b2 = merge(agg, 1.0, a, b, n2, a2, b2)
    _set_value(cells, at, width, a2, b2)
    for i in range(p):
        at = _place(base, ring, head, i, most, width)
        a1, b1 = _value(cells, at, width)
        n1, a1, b1 = merge(agg, float(split - i), a1, b1, 1.0, a, b)
        _set_value(cells, at, width, a1, b1)
    cells_i8[base + SPLIT] = split + 1


@njit(**leaf)
def update(agg, cells, cells_i8, base, size, length, most, now, seen, v, w, t):
    """Advance a window to `now` and, if `seen`, take in the event (v, w, t). The result pane is then right.

    length  ns of the window (now - length, now]; 0 = the last `most` events, whenever they were
    An event that is still in the window when there is no room is counted in the overflow cell.
    """
    stacked = agg not in (COUNT, FIRST, LAST)
    width = 2 if agg in (FIRST, LAST) else size
    ring = BACK + 2 * size
    if length > 0:
        edge = now - length
        while cells_i8[base + SIZE] > 0 and (
            cells_i8[_place(base, ring, cells_i8[base + HEAD], 0, most, width)] <= edge
        ):
            _drop_oldest(agg, stacked, cells, cells_i8, base, ring, most, width, size)
        seen = seen and t > edge
    if seen:
        if cells_i8[base + SIZE] == most:
            if length > 0:
                cells_i8[base + OVERFLOW] += 1
            if t < cells_i8[_place(base, ring, cells_i8[base + HEAD], 0, most, width)]:
                seen = False
            else:
                _drop_oldest(agg, stacked, cells, cells_i8, base, ring, most, width, size)
        if seen:
            _insert(agg, stacked, cells, cells_i8, base, ring, most, width, size, v, w, t)
    _result(agg, stacked, cells, cells_i8, base, ring, most, width, size)


@njit(**inlined)
def _result(agg, stacked, cells, cells_i8, base, ring, most, width, size):
    """Front and back merged into the result pane."""
    head, count, split = cells_i8[base + HEAD], cells_i8[base + SIZE], cells_i8[base + SPLIT]
    at = base + BACK + size
    if not stacked:
        cells[at] = float(count)
        if agg != COUNT and count > 0:
            i = 0 if agg == FIRST else count - 1
            source = _place(base, ring, head, i, most, width)
            cells[at + 1] = cells[source + 1]
            cells_i8[at + 2] = cells_i8[source]
        return
    n, a, b = load(cells, base + BACK, size)
    if split > 0:
        a1, b1 = _value(cells, _place(base, ring, head, 0, most, width), width)
        n, a, b = merge(agg, float(split), a1, b1, n, a, b)
    elif count == 0:
        n, a, b = 0.0, 0.0, 0.0
    store(cells, at, size, n, a, b)

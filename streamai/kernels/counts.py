"""Item-to-item counts, bounded and decayed: which items follow which within a key's events.

When item j comes, every item i among the key's last W gets a link i -> j of weight 1 / distance (1 = the
event just before). A row keeps K links: one that is there grows; a new one takes the slot of the smallest
weight (the lowest such slot) if its own weight is at least as great, else it is dropped. A score is

    s(j) = sum over the last items i, age 1 = newest:  (1 / age) C(i, j) / (pop_i + 20) / (pop_j + 20)^0.2

Forward decay (Cormode et al. 2009): a weight is stored as weight * exp((t - landmark) / tau), so nothing
has to be decayed until the numbers grow large; then everything is rescaled to a new landmark. Settings and
what they cost in quality: docs/decisions.md. Everything zero = empty: ids hold item + 1.

ids i4[N, K], w f4[N, K] (K a multiple of 16), pop and fast f4[N] (decayed by tau[0] and tau[1]),
norm f4[N] = (pop + 20)^-0.2 when the item last came, top_pop and top_fast i4[64] the most popular
(item + 1, 0 = none). tau f8[>= 2] in ns. clock i8: see `context`.
"""

import numpy as np
from numba import njit

from . import jit, simd
from .context import LANDMARK, RESCALED
from .maths import exp_f4, exp_f8, log_f4
from .rank import keep_best

WINDOW = 20
"""The longest history that a log record holds."""
SMOOTH = 20.0
_POWER = np.float32(-0.2)
RESCALE_TAUS = 60.0
LOG = np.dtype(
    [("offset", "i8"), ("event_ts_ns", "i8"), ("item", "i4"), ("n", "i4"), ("hist", "i4", (WINDOW,))]
)
"""What one `learn` needs to be done again; hist is most recent first, negative = unknown item."""
_f4 = np.float32
_ZERO, _ONE = _f4(0), _f4(1)
_NO_OFFSETS = np.zeros(0, np.int64)


@njit(inline="always", **jit)
def _link(ids, w, i, item, weight):
    """Add weight to the link i -> item.

    No branch depends on where in the row something is found: guessing that wrong costs more than looking
    at all of it.
    """
    width = ids.shape[1]
    at = np.int64(i) * width
    name = np.int32(item + 1)
    wanted, nothing, mine = simd.splat_integer(name), simd.zero_integers(), simd.splat(weight)
    slot, beaten = -1, np.int32(0)
    for part in range(0, width, 64):
        found = free = np.int64(0)
        for s in range(part, min(part + 64, width), 16):
            names = simd.load_integers(ids, at + s)
            found |= np.int64(simd.equal_integers(names, wanted)) << (s - part)
            free |= np.int64(simd.equal_integers(names, nothing)) << (s - part)
            beaten |= simd.above(simd.load(w, at + s), mine) ^ np.int32(0xFFFF)
        if found != 0:
            w[i, part + simd.lowest_bit(found)] += weight
            return
        if free != 0 and slot < 0:
            slot = part + simd.lowest_bit(free)
    if slot < 0 and beaten != 0:
        slot = _smallest(w, at, width)
    if slot >= 0:
        ids[i, slot], w[i, slot] = name, weight


@njit(**jit)
def _smallest(w, at, width):
    """Slot of the smallest of w[at : at + width], the lowest such."""
    least = simd.load(w, at)
    for s in range(16, width, 16):
        least = simd.smaller(simd.load(w, at + s), least)
    edge = simd.splat(simd.minimum(least))
    for s in range(0, width, 16):
        hit = simd.equal(simd.load(w, at + s), edge)
        if hit != 0:
            return s + simd.lowest_bit(np.int64(hit))
    return 0


@njit(**jit)
def _rescale(w, pop, fast, clock, tau, t, offset, offsets):
    """Move the landmark to t. With offsets, only rows that do not have record `offset` in them yet."""
    gone = np.float64(t - clock[LANDMARK])
    slow_factor, fast_factor = _f4(exp_f8(-gone / tau[0])), _f4(exp_f8(-gone / tau[1]))
    for i in range(w.shape[0]):
        if offsets.size == 0 or offset >= offsets[i]:
            for s in range(w.shape[1]):
                w[i, s] *= slow_factor
            pop[i] *= slow_factor
            fast[i] *= fast_factor
    clock[LANDMARK] = t
    clock[RESCALED] += 1


@njit(**jit)
def _apply(ids, w, pop, fast, norm, clock, tau, hist, n, item, t, offset, offsets):
    """One event into the rows (all, or those older than the record). True when it was rescaled."""
    t = t if t != 0 else 1  # landmark 0 is none yet
    rescaled = False
    if clock[LANDMARK] == 0:
        clock[LANDMARK] = t
    elif np.float64(t - clock[LANDMARK]) > RESCALE_TAUS * min(tau[0], tau[1]):
        _rescale(w, pop, fast, clock, tau, t, offset, offsets)
        rescaled = True
    gone = np.float64(t - clock[LANDMARK])
    growth, grow = exp_f8(gone / tau[0]), exp_f8(gone / tau[1])
    every = offsets.size == 0
    factor = _f4(growth)
    for k in range(n):
        i = hist[k]
        if i >= 0 and (every or offset >= offsets[i]):
            _link(ids, w, i, item, factor / _f4(k + 1))
    if every or offset >= offsets[item]:
        pop[item] += factor
        fast[item] += _f4(grow)
        norm[item] = exp_f4(_POWER * log_f4(_f4(np.float64(pop[item]) / growth + SMOOTH)))
    return rescaled


@njit(**jit)
def learn(ids, w, pop, fast, norm, top_pop, top_fast, clock, tau, hist, n, item, event_ts_ns):
    """One event: item >= 0 after the key's items hist[:n], most recent first (negative = unknown)."""
    if _apply(ids, w, pop, fast, norm, clock, tau, hist, n, item, event_ts_ns, 0, _NO_OFFSETS):
        rebuild_popular(pop, top_pop)
        rebuild_popular(fast, top_fast)
    else:
        _rise(pop, top_pop, item)
        _rise(fast, top_fast, item)


@njit(**jit)
def replay(log, offsets, ids, w, pop, fast, norm, clock, tau):
    """Apply the records LOG[n], in offset order, to rows from snapshots of different age.

    offsets i8[N]: the first offset that is not in row i yet. clock[LANDMARK] has to be that of the oldest
    row. The popular lists are not kept: call `rebuild_popular` for both afterwards. Gives the bits of
    never having stopped.
    """
    for e in range(log.shape[0]):
        replay_record(log[e], offsets, ids, w, pop, fast, norm, clock, tau)


@njit(**jit)
def replay_record(record, offsets, ids, w, pop, fast, norm, clock, tau):
    """One record of `replay`."""
    _apply(ids, w, pop, fast, norm, clock, tau, record.hist, record.n, record.item, record.event_ts_ns,
           record.offset, offsets)  # fmt: skip


@njit(**jit)
def _ahead(values, i, j):
    """Whether item i stands before item j: greater value, then lower index."""
    return values[i] > values[j] or (values[i] == values[j] and i < j)


@njit(**jit)
def _rise(values, top, item):
    """Keep `top` right after values[item] has grown."""
    last = top.size - 1
    if top[last] != 0 and top[last] != item + 1 and _ahead(values, top[last] - 1, item):
        return
    p = 0
    while p < last and top[p] != 0 and top[p] != item + 1:
        p += 1
    while p > 0 and _ahead(values, item, top[p - 1] - 1):
        top[p] = top[p - 1]
        p -= 1
    top[p] = item + 1


@njit(**jit)
def rebuild_popular(values, top):
    """top = the items of greatest value f4[N], value descending, then index ascending; none of value 0."""
    for p in range(top.size):
        top[p] = 0
    for i in range(values.size):
        if values[i] > _ZERO:
            _rise(values, top, i)


@njit(**jit)
def decay(clock, tau, event_ts_ns):
    """What a stored count or popularity is to be multiplied with at this time (of tau, in ns)."""
    t = event_ts_ns if event_ts_ns != 0 else 1
    return exp_f8(-np.float64(t - clock[LANDMARK]) / tau)


@njit(**jit)
def accumulate(ids, w, pop, norm, clock, tau, hist, n, event_ts_ns, acc, touched):
    """Scores of everything linked from hist[:n] (most recent first): acc[j] = s(j), touched[:m] the j's.

    acc f4[N] all zeros before; touched i4[>= n * K]. Returns m. `clear` makes acc zero again.
    """
    left = decay(clock, tau[0], event_ts_ns)
    m = 0
    for k in range(n):
        i = hist[k]
        if i < 0:
            continue
        scale = _f4(left / ((np.float64(pop[i]) * left + SMOOTH) * (k + 1)))
        for s in range(ids.shape[1]):
            j = ids[i, s] - 1
            if j < 0:
                break
            old, more = acc[j], scale * w[i, s]
            acc[j] = old + more
            touched[m] = j
            m += (old == _ZERO) & (more > _ZERO)  # a link faded to nothing must not be met twice
    for p in range(m):
        j = touched[p]
        acc[j] *= norm[j]
    return m


@njit(**jit)
def best(acc, touched, m, available, exclude, k, values, out):
    """The k best by acc among touched[:m] that are available and not excluded; returns how many.

    out i4 and values f4 of at least m; in the order they were met, ties at the edge to the lower index.
    """
    n = 0
    for p in range(m):
        j = touched[p]
        values[n], out[n] = acc[j], j
        n += available[j] != 0 and exclude[j] == 0
    if n > k:
        keep_best(values, out, n, k)
        n = k
    return n


@njit(**jit)
def clear(acc, touched, m):
    """Zero what `accumulate` wrote."""
    for p in range(m):
        acc[touched[p]] = _ZERO

"""The oracle: every feature worked out again from all events of a key, in slow and obvious Python.

Reads the same declarations as the kernel, shares no code with it. Sums are exact (math.fsum), variances
take two passes, windows are looked for in the whole history.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from streamai.declaration import Expression, Feature, kind_numbers
from streamai.events import Schema

NAN = float("nan")


@dataclass(frozen=True)
class Event:
    """One event of one key. columns in the schema's order, NaN = missing."""

    t: int
    kind: int
    item_hash: int
    columns: tuple[float, ...]


def features(view, events: list[Event], schema: Schema) -> list[dict[str, float]]:
    """The features of every event, each seeing the events up to itself."""
    pasts = [events[: i + 1] for i in range(len(events))]
    return [{name: value(f, past, schema) for name, f in view.features.items()} for past in pasts]


def value(f: Feature, events: list[Event], schema: Schema) -> float:
    """A feature of the last of the events."""
    if f.inputs:
        a, b = (value(g, events, schema) for g in f.inputs)
        return _of_two(f.output, a, b)
    kinds = kind_numbers(f, schema) or tuple(range(64))
    v = _column(f.value, events, kinds, schema)
    w = _column(f.weight, events, kinds, schema)
    seen = [e.kind in kinds and not math.isnan(a) and not math.isnan(b) for e, a, b in zip(events, v, w)]
    now = max(e.t for e in events)
    if f.window.kind == "since":
        before = [e.t for e, s in zip(events[:-1], seen) if s]
        return (now - max(before)) / 1e6 if before else NAN
    if f.window.kind == "ewm":
        return _time_weighted(f.window.length_ns, [(e.t, a) for e, a, s in zip(events, v, seen) if s])
    inside = _inside(f.window, events, seen, now)
    picked = sorted((events[i].t, i) for i in inside)
    half_life = f.window.length_ns if f.window.kind == "decayed" else math.inf
    weights = [2.0 ** (-(now - t) / half_life) for t, _ in picked]
    picked = [p for p, c in zip(picked, weights) if c > 1e-200]  # what lost so much weight is forgotten
    weights = [c for c in weights if c > 1e-200]
    return _output(f, [v[i] for _, i in picked], [w[i] for _, i in picked], weights, now)


def _inside(window, events, seen, now) -> list[int]:
    """Which events are in the window at `now`, given the order in which they came."""
    if window.kind in ("unbounded", "decayed"):
        return [i for i, s in enumerate(seen) if s]
    if window.kind == "sawtooth":
        hop = math.ceil(window.length_ns / window.parts)
        oldest = now // hop - window.parts
        return [i for i, s in enumerate(seen) if s and events[i].t // hop >= oldest]
    if window.kind == "tumbling":
        length = window.length_ns
        return [i for i, s in enumerate(seen) if s and events[i].t // length == now // length]
    if window.kind == "session":
        return _session(window.length_ns, events, seen)
    return _exact(window, events, seen)[0]


def _session(gap, events, seen) -> list[int]:
    inside, newest, start = [], None, None
    for i, e in enumerate(events):
        if newest is None or e.t - newest >= gap:
            inside, start = [], e.t
        elif e.t < start:
            if start - e.t >= gap:
                continue
            start = e.t
        newest = e.t if newest is None else max(newest, e.t)
        if seen[i]:
            inside.append(i)
    return inside


def _exact(window, events, seen) -> tuple[list[int], int]:
    """(events kept, number dropped for want of room)."""
    kept, dropped, now = [], 0, 0
    for i, e in enumerate(events):
        now = max(now, e.t)
        if window.length_ns:
            kept = [j for j in kept if events[j].t > now - window.length_ns]
        if seen[i] and (not window.length_ns or e.t > now - window.length_ns):
            kept = sorted([*kept, i], key=lambda j: (events[j].t, j))
            if len(kept) > window.parts:
                kept, dropped = kept[1:], dropped + 1
    return kept, dropped


def overflow(f: Feature, events: list[Event], schema: Schema) -> int:
    """How many events an exact window without columns of its own has dropped."""
    kinds = kind_numbers(f, schema) or tuple(range(64))
    return _exact(f.window, events, [e.kind in kinds for e in events])[1]


def _time_weighted(half_life, points) -> float:
    m = newest = None
    for t, x in points:
        if m is None:
            m, newest = x, t
        elif t >= newest:
            keep = 2.0 ** (-(t - newest) / half_life)
            m, newest = keep * m + (1 - keep) * x, t
    return NAN if m is None else m


def _output(f: Feature, v: list, w: list, weights: list, now: int) -> float:
    n, sum_of = math.fsum(weights), math.fsum
    if f.output == "n":
        return n
    if f.output == "total":
        return sum_of(c * x for c, x in zip(weights, v))
    if f.output == "rate":
        return _rate(f.window, n, now)
    if f.output == "distinct":
        return _linear_counting({int(x) % f.bits for x in v}, f.bits)
    if not v:
        return NAN
    mean = sum_of(c * x for c, x in zip(weights, v)) / n
    if f.output == "mean":
        return mean
    if f.output in ("variance", "std"):
        variance = sum_of(c * (x - mean) ** 2 for c, x in zip(weights, v)) / n
        return variance if f.output == "variance" else math.sqrt(variance)
    if f.output == "root":
        return math.sqrt(sum_of(c * x for c, x in zip(weights, v)))
    if f.output == "weighted_mean":
        volume = sum_of(c * x for c, x in zip(weights, w))
        return sum_of(c * x * y for c, x, y in zip(weights, v, w)) / volume if volume else NAN
    return {"minimum": min(v), "maximum": max(v), "first": v[0], "last": v[-1]}[f.aggregate]


def _rate(window, n, now) -> float:
    if window.kind == "decayed":
        return n * math.log(2) / (window.length_ns / 1e9)
    if window.kind == "sawtooth":
        hop = math.ceil(window.length_ns / window.parts)
        return n / ((now - (now // hop - window.parts) * hop) / 1e9)
    return n / (window.length_ns / 1e9)


def _linear_counting(ones: set, bits: int) -> float:
    return bits * math.log(bits / max(bits - len(ones), 1))


def _of_two(output: str, a: float, b: float) -> float:
    if output == "minus":
        return a - b
    if output == "log_ratio":
        return math.log(a / b) if a > 0 and b > 0 else NAN
    if b == 0 or math.isnan(b):
        return NAN
    return a / b if output == "ratio" else 1e4 * (a - b) / b


def _column(c, events, kinds, schema) -> list[float]:
    """A column, or what is worked out of some, for each event."""
    if c is None:
        return [0.0] * len(events)
    if isinstance(c, str):
        return [e.columns[schema.column(c)] for e in events]
    inputs = [_column(d, events, kinds, schema) for d in c.inputs]
    if c.op in ("log_return", "order_flow"):
        return _from_the_one_before(c, inputs, events, kinds)
    return [_plain(c.op, e, *x) for e, *x in zip(events, *inputs)]


def _from_the_one_before(c: Expression, inputs, events, kinds) -> list[float]:
    out, before, newest = [], None, 0
    for i, e in enumerate(events):
        x = [column[i] for column in inputs]
        usable = e.kind in kinds and e.t >= newest and not any(map(math.isnan, x))
        newest = max(newest, e.t)
        if c.op == "log_return":
            usable = usable and x[0] > 0
        if not usable:
            out.append(NAN)
            continue
        change = _log_return if c.op == "log_return" else _order_flow
        out.append(0.0 if before is None else change(before, x))
        before = x
    return out


def _log_return(before, x) -> float:
    return math.log(x[0] / before[0])


def _order_flow(before, x) -> float:
    bid0, ask0, bid_size0, ask_size0 = before
    bid, ask, bid_size, ask_size = x
    of_bid = (bid >= bid0) * bid_size - (bid <= bid0) * bid_size0
    of_ask = (ask <= ask0) * ask_size - (ask >= ask0) * ask_size0
    return of_bid - of_ask


def _plain(op: str, e: Event, *x: float) -> float:
    if op == "item_hash":
        return _hash(e.item_hash) if e.item_hash else NAN
    if any(map(math.isnan, x)):
        return NAN
    if op == "value_hash":
        return _hash(struct.unpack("<Q", struct.pack("<d", x[0] + 0.0))[0])
    if op == "middle":
        return (x[0] + x[1]) / 2
    if op == "spread_bp":
        return 1e4 * (x[1] - x[0]) / ((x[0] + x[1]) / 2)
    if op == "imbalance":
        return (x[0] - x[1]) / (x[0] + x[1]) if x[0] + x[1] else NAN
    if op == "weighted_mid":
        bid, ask, bid_size, ask_size = x
        return (ask * bid_size + bid * ask_size) / (bid_size + ask_size) if bid_size + ask_size else NAN
    return {"square": lambda a: a * a, "product": lambda a, b: a * b}[op](*x)


def _hash(h: int) -> float:
    """MurmurHash3's 64-bit finaliser, the upper 52 bits."""
    m = (1 << 64) - 1
    h ^= h >> 33
    h = h * 0xFF51AFD7ED558CCD & m
    h ^= h >> 33
    h = h * 0xC4CEB9FE1A85EC53 & m
    h ^= h >> 33
    return float(h >> 12)

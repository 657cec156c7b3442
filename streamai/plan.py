"""Compiled feature views: the tables that kernels/windows.py runs on, and the layout of their state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import log

import numpy as np

from streamai.declaration import Expression, Feature, Window, check, kind_numbers
from streamai.errors import DeclarationError
from streamai.events import Schema
from streamai.kernels import derive, exact, panes, windows

STATE_FORMAT = 1  # raised when the same declaration would lay out or mean its cells otherwise
AGGREGATES = {
    "count": panes.COUNT,
    "sum": panes.SUM,
    "moments": panes.MOMENTS,
    "weighted": panes.WEIGHTED,
    "minimum": panes.MINIMUM,
    "maximum": panes.MAXIMUM,
    "first": panes.FIRST,
    "last": panes.LAST,
    "bitmap": panes.BITMAP,
    "ewm": panes.SUM,
    "since": panes.SUM,
}
OUTPUTS = {
    "n": windows.N,
    "total": windows.TOTAL,
    "mean": windows.MEAN,
    "variance": windows.VARIANCE,
    "std": windows.STD,
    "second": windows.SECOND,
    "rate": windows.RATE,
    "root": windows.ROOT,
    "weighted_mean": windows.WEIGHTED_MEAN,
    "distinct": windows.DISTINCT,
    "ratio": windows.RATIO,
    "minus": windows.MINUS,
    "deviation_bp": windows.DEVIATION_BP,
    "log_ratio": windows.LOG_RATIO,
}
DERIVED = {
    "middle": derive.MIDDLE,
    "weighted_mid": derive.WEIGHTED_MID,
    "imbalance": derive.IMBALANCE,
    "spread_bp": derive.SPREAD_BP,
    "order_flow": derive.ORDER_FLOW,
    "log_return": derive.LOG_RETURN,
    "square": derive.SQUARE,
    "product": derive.PRODUCT,
    "item_hash": derive.ITEM_HASH,
    "value_hash": derive.VALUE_HASH,
}
WINDOWS = {
    "unbounded": windows.UNBOUNDED,
    "tumbling": windows.TUMBLING,
    "session": windows.SESSION,
    "decayed": windows.DECAYED,
    "sawtooth": windows.SAWTOOTH,
    "exact": windows.EXACT,
    "ewm": windows.EWM,
    "since": windows.SINCE,
}


@dataclass(frozen=True, eq=False)
class Plan:
    """Views of one key, compiled. `names` and f4[F] features are in the order of declaration.

    derived, acc, out   tables of kernels/windows.py, with their float parameters
    cells               8-byte cells of state a key; all zero = nothing seen
    scratch             length of the kernel's `x`
    tail_step_ns        by feature: how far its window may reach back beyond its length; 0 = exact
    digest              of what the features mean and of the layout; 16 hex digits
    """

    key: str
    names: tuple[str, ...]
    derived: np.ndarray
    derived_p: np.ndarray
    acc: np.ndarray
    acc_p: np.ndarray
    out: np.ndarray
    out_p: np.ndarray
    cells: int
    scratch: int
    tail_step_ns: tuple[int, ...]
    digest: str
    cells_of: tuple[int, ...] = ()

    def bytes_of(self) -> dict[str, int]:
        """Bytes of state by feature; what several share is booked on the first."""
        return {name: 8 * n for name, n in zip(self.names, self.cells_of)}

    def accumulator_of(self, name: str) -> int:
        """Row of `acc` that the feature reads; -1 if it is worked out of others."""
        wanted = self.names.index(name)
        return next(int(row[6]) for row in self.out if row[5] == wanted)

    def overflow(self, cells_i8: np.ndarray) -> dict[str, int]:
        """By exact feature: how many events the row's window had to drop for want of room, ever."""
        counts = {}
        for name in self.names:
            a = self.accumulator_of(name)
            if a >= 0 and self.acc[a, windows.WINDOW] == windows.EXACT and self.acc[a, windows.LENGTH] > 0:
                counts[name] = int(cells_i8[self.acc[a, windows.BASE] + exact.OVERFLOW])
        return counts


@dataclass
class _Tables:
    """Rows under construction; keys make equal ones one."""

    schema: Schema
    derived: dict = field(default_factory=dict)
    derived_rows: list = field(default_factory=list)
    acc: dict = field(default_factory=dict)
    acc_rows: list = field(default_factory=list)
    outputs: dict = field(default_factory=dict)
    out_rows: list = field(default_factory=list)
    cells: int = 0

    def take(self, n: int) -> int:
        at, self.cells = self.cells, self.cells + n
        return at

    def column(self, c: str | Expression, kinds: tuple[int, ...]) -> int:
        """Index of a column in x, adding the derived ones that it needs."""
        if isinstance(c, str):
            return self.schema.column(c)
        op = DERIVED[c.op]
        inputs = [self.column(d, kinds) for d in c.inputs]
        remembers = op in derive.CELLS  # then "the one before" is the one before of these kinds
        key = (op, tuple(inputs), kinds if remembers else ())
        if key not in self.derived:
            at = self.take(derive.CELLS.get(op, 0))
            indices = (inputs + [0] * 4)[:4]
            self.derived_rows.append([op, *indices, _mask(key[2]), at, 0])
            self.derived[key] = len(self.schema.columns) + len(self.derived_rows) - 1
        return self.derived[key]


def _mask(kinds: tuple[int, ...]) -> int:
    mask = 0
    for k in kinds:
        mask |= 1 << k
    return mask if kinds else -1


def _layout(agg: int, window: Window, bits: int) -> tuple[int, int, int]:
    """(cells of the pane, cells of the whole, cell of the result pane in it)."""
    size = bits // 64 if agg == panes.BITMAP else panes.CELLS[agg]
    if window.kind in ("unbounded", "decayed"):
        return size, size, 0
    if window.kind == "sawtooth":
        return size, 2 + size * (window.parts + 2), 2
    if window.kind == "exact":
        width = exact.entry_cells(agg)
        return size, exact.BACK + 2 * size + width * window.parts, exact.BACK + size
    return size, 1 + size, 1


def _inverse_half_life(window: Window) -> float:
    return 1.0 / window.length_ns if window.kind in ("decayed", "ewm") else 0.0


def _acc_key(f: Feature, schema: Schema) -> tuple:
    return (f.aggregate, f.value, f.weight, kind_numbers(f, schema), f.window, f.bits)


def _accumulator(tables: _Tables, key: tuple, every: set) -> int:
    """Row of acc for an aggregate; a count reads the number beside the sum where there is one."""
    aggregate, value, weight, kinds, window, bits = key
    if aggregate == "count" and ("sum", *key[1:]) in every:
        key = ("sum", *key[1:])
        aggregate = "sum"
    if key in tables.acc:
        return tables.acc[key]
    agg = AGGREGATES[aggregate]
    size, whole, result = _layout(agg, window, bits)
    x = [-1 if c is None else tables.column(c, kinds) for c in (value, weight)]
    hop = -(-window.length_ns // window.parts) if window.kind == "sawtooth" else 0
    base = tables.take(whole)
    row = [agg, WINDOWS[window.kind], *x, _mask(kinds), base, size, window.length_ns, hop, window.parts]
    tables.acc_rows.append((row + [base + result, 0], [_inverse_half_life(window), 0.0, 0.0, 0.0]))
    tables.acc[key] = len(tables.acc_rows) - 1
    return tables.acc[key]


def _rate_scale(window: Window) -> float:
    """Number of events -> events a second."""
    return (log(2.0) if window.kind == "decayed" else 1.0) * 1e9 / window.length_ns


def _output(tables: _Tables, f: Feature, every: set) -> int:
    """Row of out for a feature, adding what it needs before it; equal ones are one."""
    inputs = [_output(tables, g, every) for g in f.inputs]
    op, cell, size, acc, scale = OUTPUTS[f.output], 0, 0, -1, 0.0
    if not inputs:
        acc = _accumulator(tables, _acc_key(f, tables.schema), every)
        row = tables.acc_rows[acc][0]
        cell, size = row[windows.RESULT], row[windows.SIZE]
        if f.output == "rate":
            op = windows.RATE_OF_HOPS if f.window.kind == "sawtooth" else op
            scale = _rate_scale(f.window)
    key = (op, cell, *inputs)
    if key not in tables.outputs:
        tables.out_rows.append([[op, cell, size, *(inputs + [0, 0])[:2], -1, acc, 0], [scale, 0.0, 0.0, 0.0]])
        tables.outputs[key] = len(tables.out_rows) - 1
    return tables.outputs[key]


def _name_output(tables: _Tables, at: int, j: int) -> None:
    """Let feature j be output `at`; a second name of the same gets a row of its own."""
    row, parameters = tables.out_rows[at]
    if row[5] >= 0:
        row = list(row)
        tables.out_rows.append([row, parameters])
    row[5] = j


def _put_in_order(tables: _Tables) -> None:
    """Like beside like, so that the processor guesses the kernel's branches; what has inputs comes last."""
    acc, out = tables.acc_rows, tables.out_rows
    by_window = sorted(
        range(len(acc)), key=lambda a: (acc[a][0][windows.WINDOW], acc[a][1], acc[a][0][windows.AGG])
    )
    by_op = sorted(range(len(out)), key=lambda o: out[o][0][0] if out[o][0][6] >= 0 else windows.RATIO)
    acc_to, out_to = ({old: new for new, old in enumerate(order)} for order in (by_window, by_op))
    x = len(tables.schema.columns) + len(tables.derived_rows)
    for row, _ in out:
        row[3:5] = [x + out_to[row[3]], x + out_to[row[4]]] if row[6] < 0 else [0, 0]
        row[6] = acc_to.get(row[6], -1)
    tables.acc_rows = [acc[a] for a in by_window]
    tables.out_rows = [out[o] for o in by_op]


def _names(views: Sequence[type]) -> list[str]:
    plain = [name for v in views for name in v.features]
    return [name if plain.count(name) == 1 else f"{v.__name__}.{name}" for v in views for name in v.features]


def meaning(f: Feature, schema: Schema) -> tuple:
    """What a feature is, whatever it is called and however it was written."""
    inputs = tuple(meaning(g, schema) for g in f.inputs)
    w = f.window
    pane = f.aggregate, _spelt(f.value), _spelt(f.weight), kind_numbers(f, schema), f.bits
    return f.output, *pane, w.kind, w.length_ns, w.parts, inputs


def _spelt(c: str | Expression | None):
    return (c.op, tuple(_spelt(d) for d in c.inputs)) if isinstance(c, Expression) else c


def _array(rows: list, width: int, dtype: str) -> np.ndarray:
    return np.array(rows, dtype).reshape(len(rows), width)


def compile_plan(views: Sequence[type], schema: Schema) -> Plan:
    """See feature.compile_views. DeclarationError if the views differ in key or do not fit the schema."""
    keys = {v.key for v in views} or {schema.key}
    if len(keys) > 1:
        raise DeclarationError(f"one plan is for one key; {[v.__name__ for v in views]} have {sorted(keys)}")
    for view in views:
        for name, f in view.features.items():
            check(f, schema, f"{view.__name__}.{name}")
    features = [f for v in views for f in v.features.values()]
    every = {_acc_key(g, schema) for f in features for g in f.all() if not g.inputs}
    tables, cells_of = _Tables(schema), []
    for j, f in enumerate(features):
        before = tables.cells
        _name_output(tables, _output(tables, f, every), j)
        cells_of.append(tables.cells - before)
    _put_in_order(tables)
    columns, derived = len(schema.columns), len(tables.derived_rows)
    names = _names(views)
    declared = (STATE_FORMAT, next(iter(keys)), [(n, meaning(f, schema)) for n, f in zip(names, features)])
    return Plan(
        key=next(iter(keys)),
        names=tuple(names),
        derived=_array(tables.derived_rows, 8, "i8"),
        derived_p=np.zeros((derived, 4)),
        acc=_array([r for r, _ in tables.acc_rows], 12, "i8"),
        acc_p=_array([p for _, p in tables.acc_rows], 4, "f8"),
        out=_array([r for r, _ in tables.out_rows], 8, "i8"),
        out_p=_array([p for _, p in tables.out_rows], 4, "f8"),
        cells=tables.cells,
        scratch=columns + derived + len(tables.out_rows),
        tail_step_ns=tuple(_tail_step_ns(f) for f in features),
        digest=blake2b(repr(declared).encode(), digest_size=8).hexdigest(),
        cells_of=tuple(cells_of),
    )


def _tail_step_ns(f: Feature) -> int:
    steps = [-(-g.window.length_ns // g.window.parts) for g in f.all() if g.window.kind == "sawtooth"]
    return max(steps, default=0)

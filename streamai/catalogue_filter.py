"""Conditions on the items of a catalogue, as a request states them, and the items that fulfil them.

    {"category": ["Cameras", "Lenses"], "price": {"min": 10, "max": 99.5}, "tags": ["sale"], "brand": "Canon"}

A text column names the values that will do (one, or a list); a column of numbers takes the same, or an
interval with both ends in it; a column of lists (or `tags` as text, parted by "|") must hold one of the
names. All conditions must hold; an item without a value fulfils none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from streamai.catalogue import Catalogue

VALUES_MAX = 1000
"""Values of one condition."""
_BOUNDS = ("min", "max")

Filter = tuple[str, str, tuple]
"""(column, "in" or "between", values): hashable, and the same for the same condition."""


def parse(raw: object, catalogue: Catalogue) -> tuple[Filter, ...]:
    """Conditions from a request's `filters`, in the order of their columns; ValueError with the cause."""
    if not isinstance(raw, dict):
        raise ValueError("filters is not an object")
    return tuple(_condition(name, raw[name], catalogue) for name in sorted(raw))


def _condition(name: str, raw: object, catalogue: Catalogue) -> Filter:
    column = columns(catalogue).get(name)
    if column is None:
        known = ", ".join(columns(catalogue))
        raise ValueError(f"filter of an unknown column: {name!r}; the catalogue has {known}")
    kind = column.kind
    if isinstance(raw, dict):
        if kind != "number" or not raw or set(raw) - set(_BOUNDS):
            raise ValueError(f"filter of {name}: min and max are for numbers, got {sorted(raw)}")
        low, high = (_number(name, raw.get(bound)) for bound in _BOUNDS)
        return name, "between", (-math.inf if low is None else low, math.inf if high is None else high)
    values = raw if isinstance(raw, list) else [raw]
    if not 0 < len(values) <= VALUES_MAX:
        raise ValueError(f"filter of {name}: {len(values)} values; give 1 to {VALUES_MAX}")
    if kind == "number":
        if None in values:
            raise ValueError(f"filter of {name}: null is no number")
        return name, "in", tuple(sorted({_number(name, v) for v in values}))
    if not all(isinstance(v, str) for v in values):
        raise ValueError(f"filter of {name}: expected text")
    return name, "in", tuple(sorted(set(values)))


def _number(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"filter of {name}: {str(value)[:40]!r} is no number")
    return float(value)


@dataclass(frozen=True)
class _Column:
    """kind: "text", "number" or "list"; codes: value -> number; data: f8[n] numbers, NaN = none; or i4[n]
    codes of the texts; or the codes i4[m] of all lists' entries, and at i8[m] whose they are."""

    kind: str
    data: np.ndarray
    codes: dict[str, int] = field(default_factory=dict)
    at: np.ndarray | None = None


_COLUMNS: WeakKeyDictionary[Catalogue, dict[str, _Column]] = WeakKeyDictionary()


def columns(catalogue: Catalogue) -> dict[str, _Column]:
    """What the items can be filtered by, name -> column; worked out once a catalogue."""
    found = _COLUMNS.get(catalogue)
    if found is None:
        price = catalogue.price[: catalogue.n].astype(np.float64)
        found = {"category": _texts(catalogue.categories), "price": _Column("number", price)}
        made = {name: _column(name, values) for name, values in catalogue.attributes.items()}
        found |= {name: column for name, column in made.items() if column is not None}
        _COLUMNS[catalogue] = found
    return found


def _column(name: str, values: list) -> _Column | None:
    """An attribute as a column; None: of a type that nothing can be said about."""
    kinds = {type(v) for v in values} - {type(None)}
    if kinds <= {str}:
        if name == "tags":
            return _lists([v.split("|") if v else None for v in values])
        return _texts(values)
    if kinds <= {int, float, bool}:
        return _Column("number", np.array([math.nan if v is None else v for v in values], np.float64))
    return _lists(values) if kinds == {list} else None


def _texts(values: list) -> _Column:
    codes: dict[str, int] = {}
    data = (-1 if v is None else codes.setdefault(v, len(codes)) for v in values)
    return _Column("text", np.fromiter(data, np.int32, len(values)), codes)


def _lists(values: list) -> _Column:
    codes: dict[str, int] = {}
    sizes = [0 if v is None else len(v) for v in values]
    every = (codes.setdefault(str(x), len(codes)) for v in values if v is not None for x in v)
    data = np.fromiter(every, np.int32, sum(sizes))
    return _Column("list", data, codes, np.repeat(np.arange(len(values)), sizes))


def fulfilled(filters: Sequence[Filter], catalogue: Catalogue) -> np.ndarray:
    """u1[cap]: 1 where every condition holds; spare rows are 0."""
    out = np.zeros(len(catalogue.available), np.uint8)
    out[: catalogue.n] = 1
    for name, how, values in filters:
        out[: catalogue.n] &= _holds(columns(catalogue)[name], how, _as_kept(name, values), catalogue.n)
    return out


def _as_kept(name: str, values: tuple) -> tuple:
    """Prices are kept in 32 bits: what was written as 9.99 must be found as 9.99."""
    return tuple(float(np.float32(v)) for v in values) if name == "price" else values


def _holds(column: _Column, how: str, values: tuple, n: int) -> np.ndarray:
    """bool[n]: which items fulfil a condition."""
    if column.kind == "number":
        if how == "between":
            return (column.data >= values[0]) & (column.data <= values[1])
        return np.isin(column.data, values)
    wanted = np.zeros(len(column.codes) + 1, bool)  # the last, -1, is of no value
    wanted[[column.codes[v] for v in values if v in column.codes]] = True
    if column.at is None:
        return wanted[column.data]
    out = np.zeros(n, bool)
    out[column.at[wanted[column.data]]] = True
    return out

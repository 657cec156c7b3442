"""Conditions on the items of a catalogue, as a request states them, and the items that fulfil them.

    {"category": ["Cameras", "Lenses"], "price": {"min": 10, "max": 99.5}, "tags": ["sale"], "brand": "Canon"}

A text column names the values that will do (one, or a list); a column of numbers takes the same, or an
interval with both ends in it; a column of lists (or `tags` as text, parted by "|") must hold one of the
names. All conditions must hold; an item without a value fulfils none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    kind = _kind(name, catalogue)
    if kind == "":
        known = ["category", "price", *catalogue.attributes]
        raise ValueError(f"filter of an unknown column: {name!r}; the catalogue has {', '.join(known)}")
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


def _kind(name: str, catalogue: Catalogue) -> str:
    """What a column holds: text, number, list, or "" for one that is not there or cannot be filtered by."""
    if name in ("category", "price"):
        return "text" if name == "category" else "number"
    column = catalogue.attributes.get(name)
    if column is None:
        return ""
    values = [v for v in column if v is not None]
    if all(isinstance(v, str) for v in values):
        return "list" if name == "tags" else "text"
    if all(isinstance(v, int | float) for v in values):
        return "number"
    return "list" if all(isinstance(v, list) for v in values) else ""


def fulfilled(filters: Sequence[Filter], catalogue: Catalogue) -> np.ndarray:
    """u1[cap]: 1 where every condition holds; spare rows are 0."""
    out = np.zeros(len(catalogue.available), np.uint8)
    out[: catalogue.n] = 1
    for name, how, values in filters:
        out[: catalogue.n] &= _holds(name, how, values, catalogue)
    return out


def _holds(name: str, how: str, values: tuple, catalogue: Catalogue) -> np.ndarray:
    kind = _kind(name, catalogue)
    if kind == "number":
        column = catalogue.price[: catalogue.n] if name == "price" else catalogue.attributes[name]
        numbers = np.array([math.nan if v is None else v for v in column], np.float64)
        if name == "price":  # kept in 32 bits: what was written as 9.99 must be found as 9.99
            values = tuple(float(np.float32(v)) for v in values)
        if how == "between":
            return (numbers >= values[0]) & (numbers <= values[1])
        return np.isin(numbers, values)
    wanted = set(values)
    if kind == "text":
        column = catalogue.categories if name == "category" else catalogue.attributes[name]
        return np.fromiter((v in wanted for v in column), bool, catalogue.n)
    lists = (v.split("|") if isinstance(v, str) else v or () for v in catalogue.attributes[name])
    return np.fromiter((not wanted.isdisjoint(v) for v in lists), bool, catalogue.n)

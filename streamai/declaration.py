"""What a declared feature is: columns, window, aggregate, inputs; and whether a schema can feed it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamai.errors import DeclarationError
from streamai.events import Schema

UNIT_NS = {"us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}


def duration_ns(text: str) -> int:
    """`"5m"` -> 300_000_000_000. Units: us ms s m h d."""
    digits = text.rstrip("usmhd") if isinstance(text, str) else ""
    unit = text[len(digits) :] if isinstance(text, str) else ""
    if unit not in UNIT_NS or not digits.isdecimal() or int(digits) == 0:
        raise DeclarationError(
            f"duration {text!r}: write a whole number and one of {', '.join(UNIT_NS)}, such as '5m' or '24h'"
        )
    return int(digits) * UNIT_NS[unit]


@dataclass(frozen=True)
class Expression:
    """A column worked out of others (`mid()`, `order_flow()`): may be aggregated, or stand as a feature of
    its own, which is then its newest value."""

    op: str
    inputs: tuple[str | Expression, ...] = ()

    def names(self) -> Iterator[str]:
        """The columns of the event that it needs."""
        for c in self.inputs:
            yield from c.names() if isinstance(c, Expression) else (c,)


@dataclass(frozen=True)
class Window:
    """kind: unbounded, sawtooth, exact, tumbling, session, decayed, ewm or since. Times in ns.

    parts: hops of a sawtooth window, or the greatest number of events of an exact one (whose length is 0
    for "the last n events").
    """

    kind: str = "unbounded"
    length_ns: int = 0
    parts: int = 0


@dataclass(frozen=True, eq=False)
class Feature:
    """One value per event. Made by the functions of this module, never by hand.

    output     what is read off the pane, or worked out of `inputs`
    aggregate  the pane of kernels/panes.py
    """

    output: str
    aggregate: str = ""
    value: str | Expression | None = None
    weight: str | Expression | None = None
    kinds: tuple[int | str, ...] = ()
    window: Window = Window()
    bits: int = 0
    inputs: tuple[Feature, ...] = ()

    def all(self) -> Iterator[Feature]:
        """The feature's inputs, theirs, and itself."""
        for f in self.inputs:
            yield from f.all()
        yield self

    def columns(self) -> Iterator[str]:
        """The columns of the event that the feature itself reads."""
        for c in (self.value, self.weight):
            if c is not None:
                yield from c.names() if isinstance(c, Expression) else (c,)


def _named(schema: Schema, where: str, what: str, name, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        has = ", ".join(known)
        raise DeclarationError(f"{where}: {schema.name} has no {what} {name!r}{hint} (it has {has})")


def kind_numbers(feature: Feature, schema: Schema, where: str = "feature") -> tuple[int, ...]:
    """The feature's kinds as numbers, each once, in order; () = all kinds."""
    numbers = []
    for k in feature.kinds:
        if isinstance(k, str):
            _named(schema, where, "kind", k, tuple(schema.kinds))
            numbers.append(schema.kinds[k])
        elif k not in schema.kinds.values() or isinstance(k, bool):
            known = ", ".join(f"{n} ({name})" for name, n in schema.kinds.items())
            raise DeclarationError(f"{where}: {schema.name} has no kind {k!r} (it has {known})")
        else:
            numbers.append(int(k))
    return tuple(sorted(set(numbers)))


def check(feature: Feature, schema: Schema, where: str) -> None:
    """DeclarationError if the schema lacks a column or a kind of the feature."""
    for f in feature.all():
        kind_numbers(f, schema, where)
        for name in f.columns():
            _named(schema, where, "column", name, tuple(c.name for c in schema.columns))
        if f.value == Expression("item_hash") and schema.item is None:
            raise DeclarationError(f"{where}: {schema.name} has no items to count; give distinct(of=column)")

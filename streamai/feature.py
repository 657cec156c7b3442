"""Features declared as attributes of a class, checked when the module is imported.

    class UserClicks(FeatureView):
        source = "clicks"
        key = "user_id"
        views_5m = count("5m", kind=VIEW)
        clicks_24h = count("24h", kind=CLICK)
        dwell_5m = mean("dwell_ms", "5m")
        burst = ratio(views_5m, clicks_24h)

A feature of an event sees the events of its key up to and including it. Windows end at the key's newest
event time and are half-open, (t - w, t]. An event whose column is missing (NaN) is not aggregated.

Windows, for every aggregate unless it says otherwise:

    "5m"                   the last 5 minutes, by `hops=16` whole hops and the running one (sawtooth), so
                           that it reaches back 5 min and up to 5/16 min more. 16 hops keep that below 7 %
                           for 18 panes of memory; 62 (the most) make it 1.6 % for nearly four times as much
    "5m", exact=True       the last 5 minutes to the nanosecond; keeps up to `max=256` events. One too many
                           drops the oldest and is counted (`plan.overflow`)
    last=100               the last 100 events that have the column and the kind
    tumbling="1h"          since the last full hour (of the epoch, UTC)
    session="30m"          since the last pause of 30 minutes in the key's events, of whatever kind
    half_life="10m"        all events, an event of 10 minutes ago at half weight
    nothing                all events ever

An event older than the key's newest goes where its time belongs: its hop, its place among the exact ones,
the newest session or interval if it lies in it (else it is left out there), its decayed weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypedDict, Unpack

from streamai.declaration import Expression, Feature, Window, check, duration_ns
from streamai.errors import DeclarationError
from streamai.events import SCHEMAS, Schema

if TYPE_CHECKING:
    from streamai.plan import Plan

HOPS = 16
HOPS_MAX = 62  # and the running one: bits of a mask
EXACT_MAX = 256


class Options(TypedDict, total=False):
    """What an aggregate may be told beside its column and window; see the module's docstring."""

    kind: int | str | tuple[int | str, ...]
    exact: bool
    max: int
    hops: int
    last: int
    session: str
    tumbling: str
    half_life: str


def _kinds(kind) -> tuple[int | str, ...]:
    if kind is None:
        return ()
    return tuple(kind) if isinstance(kind, (tuple, list, set, frozenset)) else (kind,)


def _count_of(where: str, name: str, value, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise DeclarationError(f"{where}: {name}={value!r}; give a whole number from {least} to {most}")
    return value


def _window(where: str, window: str | None, o: Options) -> Window:
    """The window that the options name; says which ones contradict each other."""
    unknown = set(o) - set(Options.__annotations__)
    if unknown:
        known = sorted(Options.__annotations__)
        raise DeclarationError(f"{where}: unknown option {sorted(unknown)}; known: {known}")
    named = [n for n in ("last", "session", "tumbling", "half_life") if o.get(n) is not None]
    if window is not None:
        named.insert(0, f"window {window!r}")
    if len(named) > 1:
        raise DeclarationError(f"{where}: {' and '.join(named)} are two windows; give one")
    if window is None and (o.get("exact") or o.get("hops")):
        raise DeclarationError(f'{where}: exact= and hops= belong to a window such as "5m"')
    if o.get("max") is not None and not o.get("exact"):
        raise DeclarationError(f"{where}: max= belongs to exact=True")
    if o.get("exact") and o.get("hops"):
        raise DeclarationError(f"{where}: a window is exact=True or has hops=, not both")
    if window is not None:
        length = duration_ns(window)
        if o.get("exact"):
            return Window("exact", length, _count_of(where, "max", o.get("max", EXACT_MAX), 1, 1 << 20))
        return Window("sawtooth", length, _count_of(where, "hops", o.get("hops", HOPS), 1, HOPS_MAX))
    if o.get("last") is not None:
        return Window("exact", 0, _count_of(where, "last", o["last"], 1, 1 << 20))
    for name, kind in (("session", "session"), ("tumbling", "tumbling"), ("half_life", "decayed")):
        if o.get(name) is not None:
            return Window(kind, duration_ns(o[name]))
    return Window()


def _only(where: str, window: Window, *kinds: str) -> Window:
    if window.kind not in kinds:
        raise DeclarationError(
            f"{where} is not kept in a window of kind {window.kind!r}; it is in: {', '.join(kinds)}"
        )
    return window


_UNDECAYED = ("unbounded", "sawtooth", "exact", "tumbling", "session")


def aggregate(where, output, aggregate, column, window, o, weight=None, only=()) -> Feature:
    made = _window(where, window, o)
    if only:
        _only(where, made, *only)
    return Feature(output, aggregate, column, weight, _kinds(o.get("kind")), made)


def count(window: str | None = None, *, of: str | Expression | None = None, **o: Unpack[Options]) -> Feature:
    """Number of events (of those that have column `of`); their decayed number with half_life. 0 if none."""
    return aggregate("count", "n", "count", of, window, o)


def total(column: str | Expression, window: str | None = None, **o: Unpack[Options]) -> Feature:
    """Sum of a column; 0 if none. Also named `sum`."""
    return aggregate("total", "total", "sum", column, window, o)


def mean(column: str | Expression, window: str | None = None, **o: Unpack[Options]) -> Feature:
    """Mean of a column; with half_life each event counts by its decayed weight. NaN if none."""
    return aggregate("mean", "mean", "sum", column, window, o)


def var(column: str | Expression, window: str | None = None, **o: Unpack[Options]) -> Feature:
    """Variance of a column (divided by n, not by n - 1), by Welford, West and Chan. NaN if none."""
    return aggregate("var", "variance", "moments", column, window, o)


def std(column: str | Expression, window: str | None = None, **o: Unpack[Options]) -> Feature:
    """Square root of `var`."""
    return aggregate("std", "std", "moments", column, window, o)


def minimum(column: str | Expression, window: str | None = None, **o: Unpack[Options]) -> Feature:
    """Least value of a column. NaN if none."""
    return aggregate("minimum", "second", "minimum", column, window, o, only=_UNDECAYED)


def maximum(column: str | Expression, window: str | None = None, **o: Unpack[Options]) -> Feature:
    """Greatest value of a column. NaN if none."""
    return aggregate("maximum", "second", "maximum", column, window, o, only=_UNDECAYED)


def first(column: str | Expression, window: str | None = None, **o: Unpack[Options]) -> Feature:
    """Value of the event with the least time (of equal ones the first to come). NaN if none."""
    return aggregate("first", "second", "first", column, window, o, only=_UNDECAYED)


def last(column: str | Expression, window: str | None = None, **o: Unpack[Options]) -> Feature:
    """Value of the event with the greatest time (of equal ones the last to come). NaN if none."""
    return aggregate("last", "second", "last", column, window, o, only=_UNDECAYED)


def rate(window: str | None = None, *, of: str | Expression | None = None, **o: Unpack[Options]) -> Feature:
    """Events a second: number / length of the window; with half_life, decayed number * ln 2 / half_life.

    A sawtooth window is divided by what it covers at the moment, so the rate has no bias.
    """
    kinds = ("sawtooth", "exact", "tumbling", "decayed")
    made = aggregate("rate", "rate", "count", of, window, o, only=kinds)
    if made.window.length_ns == 0:
        raise DeclarationError("rate: the last n events have no fixed length; give a window or half_life=")
    return made


def ewm(column: str | Expression, *, half_life: str, adjust: bool = True, kind=None) -> Feature:
    """Exponentially weighted mean, by event time. NaN if none.

    adjust=True   sum of 2^(-age / half_life) * value / sum of the weights: every event counts alike
    adjust=False  m <- a * m + (1 - a) * value, a = 2^(-dt / half_life): every nanosecond counts alike, as
                  polars' ewm_mean_by; of several at one time only the first counts, an older one does not
    """
    if adjust:
        return mean(column, half_life=half_life, kind=kind)
    return Feature("second", "ewm", column, None, _kinds(kind), Window("ewm", duration_ns(half_life)))


def ewm_var(column: str | Expression, *, half_life: str, kind=None) -> Feature:
    """Exponentially weighted variance around the weighted mean (West), weights as in `ewm`. NaN if none."""
    return var(column, half_life=half_life, kind=kind)


def ewm_std(column: str | Expression, *, half_life: str, kind=None) -> Feature:
    """Square root of `ewm_var`."""
    return std(column, half_life=half_life, kind=kind)


def distinct(
    window: str | None = None, *, of: str | Expression | None = None, bits: int = 512, **o: Unpack[Options]
) -> Feature:
    """Number of different items (or values of column `of`), estimated: linear counting in a bitmap.

    512 bits: standard error 3 % at 100, 5 % at 1,000, 8 % at 2,000; it cannot say more than 3,194
    (bits * ln bits). Costs bits/8 bytes a pane. Not for exact, last= and half_life.
    """
    if bits not in {64 << i for i in range(11)}:
        raise DeclarationError(f"distinct: bits={bits!r}; give a power of two from 64 to 65536")
    made = _only("distinct", _window("distinct", window, o), "unbounded", "sawtooth", "tumbling", "session")
    value = Expression("item_hash") if of is None else Expression("value_hash", (of,))
    return Feature("distinct", "bitmap", value, None, _kinds(o.get("kind")), made, bits)


def since_last(*, kind: int | str | tuple | None = None) -> Feature:
    """Milliseconds from the event before this one (of those kinds) to this one. NaN before the first; 0 for
    an event that is older than the key's newest."""
    return Feature("second", "since", None, None, _kinds(kind), Window("since"))


def _pair(name: str, output: str, a, b) -> Feature:
    pair = tuple(last(f) if isinstance(f, (Expression, str)) else f for f in (a, b))
    for f in pair:
        if not isinstance(f, Feature):
            raise DeclarationError(f"{name}: {f!r} is neither a feature nor a column")
    return Feature(output, inputs=pair)


def ratio(a: Feature | Expression | str, b: Feature | Expression | str) -> Feature:
    """a / b; NaN where b is 0 or either is NaN. A column stands for its newest value, here and below."""
    return _pair("ratio", "ratio", a, b)


def difference(a: Feature | Expression | str, b: Feature | Expression | str) -> Feature:
    """a - b."""
    return _pair("difference", "minus", a, b)


def deviation_bp(a: Feature | Expression | str, b: Feature | Expression | str) -> Feature:
    """10^4 * (a - b) / b: how far a lies above b, in basis points. NaN where b is 0."""
    return _pair("deviation_bp", "deviation_bp", a, b)


def log_ratio(a: Feature | Expression | str, b: Feature | Expression | str) -> Feature:
    """log(a / b); NaN unless both are positive."""
    return _pair("log_ratio", "log_ratio", a, b)


sum = total  # the name in SQL and polars; `total` where the built-in is wanted too


class FeatureView:
    """Features of one key from one source; a subclass says which. Derived ones refer to others by name.

    source    name of the schema ("clicks", "market"), or a Schema of one's own
    key       the schema's key, or its item (state is then kept per item and partition)
    features  dict name -> Feature, in the order of the class body; a name that starts with "_" is not a
              feature of its own, only an input of others
    """

    source: ClassVar[str]
    key: ClassVar[str]
    schema: ClassVar[Schema]
    features: ClassVar[dict[str, Feature]]

    def __init_subclass__(cls) -> None:
        source = cls.__dict__.get("source")
        cls.schema = source if isinstance(source, Schema) else SCHEMAS.get(source)
        if cls.schema is None:
            raise DeclarationError(
                f"{cls.__name__}: write `source = ...`, one of {[*SCHEMAS]} or a Schema; it is {source!r}"
            )
        cls.source = cls.schema.name
        keys = [k for k in (cls.schema.key, cls.schema.item) if k is not None]
        key = cls.__dict__.get("key")
        if key not in keys:
            raise DeclarationError(
                f"{cls.__name__}: write `key = ...`, one of {keys} for {cls.source}; it is {key!r}"
            )
        cls.features = {}
        for name, value in cls.__dict__.items():
            where = f"{cls.__name__}.{name}"
            if isinstance(value, Feature | Expression):
                f = value if isinstance(value, Feature) else last(value)
                check(f, cls.schema, where)
                if not name.startswith("_"):
                    cls.features[name] = f
            elif callable(value) and getattr(value, "__module__", "").startswith("streamai."):
                raise DeclarationError(f"{where}: write {value.__name__}(...), with what it is of")
        if not cls.features:
            raise DeclarationError(f"{cls.__name__}: no feature in the class body")

    @classmethod
    def compute(cls, events, mapping=None):
        """The features after each event of a polars DataFrame, in its order, by the engine's own kernel.

        mapping: where columns have other names, as in `streamai replay --map`: ["user_id=visitor", ...].
        """
        from streamai.replay.table import compute_view

        return compute_view(cls, events, mapping)


def compile_views(views: Sequence[type[FeatureView]], schema: Schema) -> Plan:
    """The tables that kernels/windows.py runs on; for views of one key. No view: an empty plan."""
    from streamai.plan import compile_plan  # numba comes with it; a declaration needs none

    return compile_plan(views, schema)

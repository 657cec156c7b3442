"""`--map`: which columns of a user's table are the fields of a schema.

A mapping is written as the command line writes it, `target=source`:

    user_id=visitor                 a column under another name
    event_ts_ms=time                the unit is in the target's name: _s, _ms, _us, _ns
    event_ts=created_at             a date-time column, which carries its own unit; a date is its midnight
    event_ts_ms=date+time_ms        a date column (or a date, 2012-06-21) and a time since its midnight
    bid=bid_price_1e4/10000         a number, divided or multiplied
    kind==click                     the same for every row
    price=                          leave the column of that name out

Nothing is guessed: what cannot be told is an InputError that says what to write.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import polars as pl

from streamai.errors import InputError
from streamai.events import Schema

NS_PER_UNIT = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
TIMES = ("event_ts", *(f"event_ts_{unit}" for unit in NS_PER_UNIT))
POSITION_EPOCH_NS = 1_577_836_800 * NS_PER_UNIT["s"]
"""2020-01-01: where a table that has an order but no times begins; one position is one second."""

_SCALED = re.compile(r"^(?P<column>.+?)(?P<sign>[*/])(?P<number>[0-9][0-9.eE+-]*)$")
_DAY = re.compile(r"^\d{4}-\d{2}-\d{2}$")
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Mapping:
    """target -> source, both as written.

    fields     target -> column, "day+column", "column/number", "column*number" or "" (leave out)
    constants  target -> the value of every row
    kinds      kind as in the table -> kind of the schema
    zone       IANA zone of date-times and dates that carry none
    """

    fields: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    zone: str = "UTC"

    @classmethod
    def parse(
        cls,
        maps: Iterable[str] = (),
        constants: Iterable[str] = (),
        kinds: Iterable[str] = (),
        zone: str = "UTC",
    ) -> Mapping:
        """From the values of repeated `--map`, `--set` and `--kind`; InputError where one has no `=`."""
        fields, fixed = {}, dict(_pair("--set", text) for text in constants)
        for text in maps:
            target, source = _pair("--map", text)
            if source.startswith("="):
                fixed[target] = source[1:]
            else:
                fields[target] = source
        return cls(fields, fixed, dict(_pair("--kind", text) for text in kinds), zone)

    def over(self, known: Mapping) -> Mapping:
        """This mapping, with `known` (what a file's layout says by itself) under it."""
        fields = {t: s for t, s in known.fields.items() if t not in self.constants}
        if any(t in TIMES for t in self.fields):
            fields = {t: s for t, s in fields.items() if t not in TIMES}
        return replace(self, fields=fields | self.fields, constants=known.constants | self.constants)


@dataclass(frozen=True)
class Selection:
    """A mapping met with a table: expressions that give the schema's columns.

    no_time   the event times were made from `position`
    """

    exprs: tuple[pl.Expr, ...]
    no_time: bool


def select(
    mapping: Mapping, schema: Schema, table: pl.Schema, where: str, keep: Iterable[str] = ()
) -> Selection:
    """Expressions for key, item, kind, event_ts_ns, the schema's columns, and `keep` unchanged.

    where   the file's name, for errors
    """
    names = [schema.key, *([schema.item] if schema.item else []), "kind", *(c.name for c in schema.columns)]
    for target in (*mapping.fields, *mapping.constants):
        if target not in (*names, *TIMES, "position"):
            raise InputError(
                f"--map {target}=...: {schema.name} has no field {target!r}; it has {', '.join(names)}, "
                f"{', '.join(TIMES)} and position"
            )
    exprs = [_text(mapping, schema.key, table, where, required=True)]
    if schema.item:
        exprs.append(_text(mapping, schema.item, table, where, required=True))
    exprs.append(_kind(mapping, schema, table, where))
    time, no_time = _time(mapping, table, where)
    exprs.append(time)
    exprs.extend(_number(mapping, c.name, table, where, required=c.required) for c in schema.columns)
    if "position" in mapping.fields:
        source = _column(mapping.fields["position"], "position", table, where)
        exprs.append(pl.col(source).cast(pl.Int64, strict=False).alias("position"))
    exprs.extend(pl.col(name) for name in keep)
    return Selection(tuple(exprs), no_time)


def divided(value: pl.Expr, number: float) -> pl.Expr:
    """value / number, rounded once. By a constant, polars multiplies with its reciprocal: a third of all
    prices in 1/10000 come out one bit off."""
    value = value.cast(pl.Float64)
    return value / (value * 0.0 + number)


def _pair(option: str, text: str) -> tuple[str, str]:
    target, sign, source = text.partition("=")
    if not sign or not target:
        raise InputError(f"{option} {text!r}: expected name=value, as in {option} user_id=visitor")
    return target.strip(), source.strip()


def _column(source: str, target: str, table: pl.Schema, where: str) -> str:
    if source not in table:
        raise InputError(f"{where}: --map {target}={source}: no column {source!r}; it has {', '.join(table)}")
    return source


def _source(mapping: Mapping, target: str, table: pl.Schema) -> str | None:
    """What the target is made from: as mapped, else the column of the same name, else None."""
    source = mapping.fields.get(target, target if target in table else None)
    return source or None


def _text(mapping: Mapping, target: str, table: pl.Schema, where: str, required: bool) -> pl.Expr:
    if target in mapping.constants:
        return pl.lit(mapping.constants[target], pl.String).alias(target)
    source = _source(mapping, target, table)
    if source is None:
        if not required:
            return pl.lit(None, pl.String).alias(target)
        raise InputError(
            f"{where}: no column {target!r}; it has {', '.join(table)}. "
            f"Write --map {target}=COLUMN, or --set {target}=VALUE for all rows"
        )
    kind = table[_column(source, target, table, where)]
    if not (kind.is_integer() or kind in (pl.String, pl.Categorical) or isinstance(kind, pl.Enum)):
        raise InputError(
            f"{where}: {target} is column {source!r} of type {kind}; expected text or whole numbers"
        )
    return pl.col(source).cast(pl.String).alias(target)


def _kind(mapping: Mapping, schema: Schema, table: pl.Schema, where: str) -> pl.Expr:
    for kind in (*mapping.kinds.values(), *filter(None, [mapping.constants.get("kind")])):
        if kind not in schema.kinds:
            known = ", ".join(schema.kinds)
            raise InputError(f"{where}: kind {kind!r} is unknown; {schema.name} has {known}")
    expr = _text(mapping, "kind", table, where, required=schema.default_kind is None)
    if mapping.kinds:
        expr = expr.replace(mapping.kinds)
    return expr.fill_null(schema.default_kind).alias("kind") if schema.default_kind else expr


def _number(mapping: Mapping, target: str, table: pl.Schema, where: str, required: bool) -> pl.Expr:
    if target in mapping.constants:
        return pl.lit(float(mapping.constants[target])).alias(target)
    source = _source(mapping, target, table)
    if source is None:
        if required:
            raise InputError(f"{where}: no column {target!r}. Write --map {target}=COLUMN")
        return pl.lit(None, pl.Float64).alias(target)
    factor, sign = 1.0, "*"
    scaled = _SCALED.match(source) if source not in table else None
    if scaled:
        source, sign, factor = scaled["column"], scaled["sign"], float(scaled["number"])
    value = _float(source, table[_column(source, target, table, where)])
    if scaled:
        value = divided(value, factor) if sign == "/" else value * factor
    return value.alias(target)


def _float(name: str, kind: pl.DataType) -> pl.Expr:
    """A column as f8; text that is no number becomes NaN, which the wire refuses, and "" is missing."""
    if kind != pl.String:
        return pl.col(name).cast(pl.Float64, strict=False)
    text = pl.col(name).str.strip_chars()
    number = text.cast(pl.Float64, strict=False)
    bad = number.is_null() & text.is_not_null() & (text != "")
    return pl.when(bad).then(float("nan")).otherwise(number)


def _time(mapping: Mapping, table: pl.Schema, where: str) -> tuple[pl.Expr, bool]:
    """The expression of event_ts_ns, and whether it was made from `position`."""
    mapped = [t for t in TIMES if mapping.fields.get(t)] or [
        t for t in TIMES if t in table and mapping.fields.get(t) is None
    ]
    if len(mapped) > 1:
        raise InputError(
            f"{where}: {' and '.join(mapped)} both say the event's time. Leave one out: --map {mapped[1]}="
        )
    if mapped:
        target = mapped[0]
        return _when(mapping.fields.get(target, target), target, mapping.zone, table, where), False
    if mapping.fields.get("position"):
        source = _column(mapping.fields["position"], "position", table, where)
        step = pl.col(source).cast(pl.Int64, strict=False) * NS_PER_UNIT["s"]
        return (POSITION_EPOCH_NS + step).alias("event_ts_ns"), True
    dates = [n for n, t in table.items() if isinstance(t, pl.Datetime) or t == pl.Date]
    hint = "--map event_ts_ms=COLUMN (or _s, _us, _ns: the column's unit)"
    if dates:
        hint = f"--map event_ts={dates[0]}"
    raise InputError(
        f"{where}: no time; it has {', '.join(table)}. Write {hint}. "
        "Where there is an order but no time, write --map position=COLUMN"
    )


def _when(source: str, target: str, zone: str, table: pl.Schema, where: str) -> pl.Expr:
    unit = target.removeprefix("event_ts").removeprefix("_")
    if source not in table and "+" in source:
        day, _, rest = source.partition("+")
        return _since_midnight(day, rest, target, unit, zone, table, where)
    kind = table[_column(source, target, table, where)]
    if isinstance(kind, pl.Datetime):
        return _utc(pl.col(source), kind.time_zone, zone).alias("event_ts_ns")
    if kind == pl.Date:  # its midnight
        return _utc(pl.col(source), None, zone).alias("event_ts_ns")
    if not unit:
        if kind != pl.String:
            raise InputError(
                f"{where}: --map event_ts={source}: column {source!r} is {kind} and does not say its unit. "
                f"Write --map event_ts_s={source}, or event_ts_ms, event_ts_us, event_ts_ns"
            )
        text = pl.col(source).str.to_datetime(time_unit="ns", time_zone="UTC", strict=False)
        return text.dt.epoch("ns").alias("event_ts_ns")
    if not (kind.is_numeric() or kind == pl.String):
        raise InputError(f"{where}: --map {target}={source}: column {source!r} is {kind}; expected a number")
    return _to_ns(source, kind, NS_PER_UNIT[unit]).alias("event_ts_ns")


def _since_midnight(
    day: str, rest: str, target: str, unit: str, zone: str, table: pl.Schema, where: str
) -> pl.Expr:
    if not unit:
        raise InputError(
            f"{where}: --map {target}={day}+{rest}: say the unit of {rest!r}, as in event_ts_ms={day}+{rest}"
        )
    kind = table[_column(rest, target, table, where)]
    if day not in table and _DAY.match(day):
        midnight = pl.lit(dt.date.fromisoformat(day))
    elif table[_column(day, target, table, where)] == pl.String:
        midnight = pl.col(day).str.to_date("%Y-%m-%d", strict=False)
    else:
        midnight = pl.col(day)
    since = pl.duration(nanoseconds=_to_ns(rest, kind, NS_PER_UNIT[unit]), time_unit="ns")
    return _utc(midnight.cast(pl.Datetime("ns")) + since, None, zone).alias("event_ts_ns")


def _utc(moment: pl.Expr, its_zone: str | None, zone: str) -> pl.Expr:
    """ns since the epoch. A wall time that happens twice is the first; one that never was is missing."""
    moment = moment.cast(pl.Datetime("ns", its_zone))
    if its_zone is None and zone != "UTC":
        moment = moment.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return moment.dt.epoch("ns")


def _to_ns(name: str, kind: pl.DataType, factor: int) -> pl.Expr:
    """A number of units as ns; outside of int64 (years 1678 to 2262) it is missing, never wrapped."""
    value = pl.col(name)
    if kind == pl.String:
        value = value.str.strip_chars()
        whole = value.cast(pl.Int64, strict=False)
        part = (value.cast(pl.Float64, strict=False) * factor).round()
        return pl.coalesce(_times(whole, factor), _float_ns(part))
    if kind.is_float():
        return _float_ns((value * factor).round())
    return _times(value.cast(pl.Int64, strict=False), factor)


def _times(value: pl.Expr, factor: int) -> pl.Expr:
    bound = _INT64_MAX // factor
    return pl.when(value.is_between(-bound, bound)).then(value * factor)


def _float_ns(value: pl.Expr) -> pl.Expr:
    return pl.when(value.abs() < 9.2e18).then(value).cast(pl.Int64, strict=False)

"""What makes an event good: the rules at the edge, in plain Python. They decide; kernels only hurry.

`kernels/scan.py` accepts the common good record by the same rules and hands everything else here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from streamai.events import Schema
from streamai.wire.dead_letter import Rejected

KEY_BYTES_MAX = 256
TIME_SCALES = {"event_ts_ns": 1, "event_ts_us": 10**3, "event_ts_ms": 10**6, "event_ts_s": 10**9}
TIME_END_NS = 9_214_646_400 * 10**9
"""2262-01-01, where nanoseconds since 1970 leave an int64."""

_TYPES = {
    bool: "a boolean",
    str: "a string",
    dict: "an object",
    list: "a list",
    int: "a number",
    float: "a number",
}


def _a_type(value: object) -> str:
    return _TYPES.get(type(value), type(value).__name__)


def text_id(record: Mapping, name: str) -> bytes | None:
    """The bytes of a key or item id: non-empty text, or an integer's decimal text. None if missing."""
    value = record.get(name)
    if value is None:
        return None
    if type(value) is int:
        value = str(value)
    elif type(value) is float:
        raise Rejected(f"wrong type: {name} is a fraction")
    elif type(value) is not str:
        raise Rejected(f"wrong type: {name} is {_a_type(value)}")
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise Rejected(f"{name} is not Unicode text") from None
    if not raw:
        raise Rejected(f"empty {name}")
    if len(raw) > KEY_BYTES_MAX:
        raise Rejected(f"{name} of {len(raw)} bytes exceeds {KEY_BYTES_MAX}")
    return raw


def event_time(record: Mapping) -> int:
    """Nanoseconds from the one time field there is; whole and fraction apart, so a float loses nothing."""
    names = [name for name in TIME_SCALES if record.get(name) is not None]
    if not names:
        raise Rejected("missing event time")
    if len(names) > 1:
        raise Rejected(f"more than one event time: {', '.join(names)}")
    name = names[0]
    value, scale = record[name], TIME_SCALES[name]
    if type(value) is int:
        ns = value * scale
    elif type(value) is float:
        if not 0 < value < TIME_END_NS / scale:
            raise Rejected(f"absurd event time: {name} is {value}")
        whole = math.floor(value)
        ns = whole * scale + round((value - whole) * scale)
    else:
        raise Rejected(f"wrong type: {name} is {_a_type(value)}")
    if not 0 < ns < TIME_END_NS:
        raise Rejected(f"absurd event time: {name} is {str(value)[:40]}")
    return ns


def check_skew(ts_ns: int, kafka_ts_ns: int, max_skew_ns: int) -> None:
    """Reject a time too far ahead of the record's Kafka time (<= 0: unknown, nothing to check)."""
    ahead = ts_ns - kafka_ts_ns
    if kafka_ts_ns <= 0 or ahead <= max_skew_ns:
        return
    s = ahead // 10**9
    span = f"{s} s" if s < 120 else f"{s // 60} min" if s < 7200 else f"{s // 3600} h"
    raise Rejected(f"event time {span} ahead of the record's Kafka time")


def kind_of(schema: Schema, record: Mapping) -> int:
    """The kind's code; a missing one is the schema's default."""
    kind = record.get("kind")
    if kind is None:
        kind = schema.default_kind
        if kind is None:
            raise Rejected("missing kind")
    if type(kind) is not str:
        raise Rejected(f"wrong type: kind is {_a_type(kind)}")
    code = schema.kinds.get(kind)
    if code is None:
        raise Rejected(f"unknown kind {kind[:40]!r}")
    return code


def columns_of(schema: Schema, record: Mapping, out: np.ndarray) -> None:
    """Write the columns into out f8[C], NaN where missing; reject what is no number."""
    for j, column in enumerate(schema.columns):
        value = record.get(column.name)
        if value is None:
            out[j] = math.nan
            continue
        if type(value) is not int and type(value) is not float:
            raise Rejected(f"wrong type: {column.name} is {_a_type(value)}")
        try:
            out[j] = float(value) + 0.0  # -0.0 becomes 0.0
        except OverflowError:
            raise Rejected("number out of range") from None


def check_columns(schema: Schema, kind: int, values: np.ndarray) -> None:
    """Reject values f8[C] that break a rule of their column, a need of the kind, or bid <= ask."""
    for j, column in enumerate(schema.columns):
        v, name = float(values[j]), column.name
        if math.isnan(v):
            if column.required:
                raise Rejected(f"missing {name}")
        elif math.isinf(v):
            raise Rejected(f"not finite: {name}")
        elif column.rule == "sign":
            if v not in (-1.0, 0.0, 1.0):
                raise Rejected(f"{name} is {v}, expected -1, 0 or 1")
        elif column.rule != "any" and v < 0:
            raise Rejected(f"negative {name}: {v}")
        elif column.rule == "positive" and v == 0:
            raise Rejected(f"zero {name}")
    if schema.crossed:
        bid, ask = (float(values[schema.column(name)]) for name in schema.crossed)
        if bid > ask:
            raise Rejected(f"{schema.crossed[0]} above {schema.crossed[1]}: {bid} > {ask}")
    for kind_name, name in schema.needs:
        if schema.kinds[kind_name] == kind and math.isnan(values[schema.column(name)]):
            raise Rejected(f"{kind_name} without {name}")

"""The fixed binary record: the same event as in JSON, little-endian, of one size per schema.

    at  type      what
    0   u1        0xA5 (no JSON value begins with it)
    1   u1        version, 1
    2   u1        kind's code
    3   u1        bytes of the key, 1 to 40
    4   u1        bytes of the item id, 0 = no item (and 0 where the schema has none)
    5   u1        0
    6   u2        names the schema: low 16 bits of the CRC-32 of its field names
    8   i8        event_ts_ns
    16  f8[C]     the columns in the schema's order, NaN = missing
    ..  u1[40]    the key, UTF-8, zeros after it
    ..  u1[40]    the item id likewise, only where the schema has an item

A request (kind 5) has NaN columns, no item, event time 0 when it names none, and behind the record its
variable part (wire/request.py) as a JSON object, or nothing.

Clicks take 120 bytes, market events 112. Ids longer than 40 bytes go as JSON; a topic may hold both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

import msgspec
import numpy as np

from streamai.errors import InputError
from streamai.events import REQUEST, SCHEMAS, Schema
from streamai.wire.check import TIME_END_NS, event_time, kind_of, text_id
from streamai.wire.dead_letter import Rejected

MAGIC, VERSION, ID_BYTES = 0xA5, 1, 40


def schema_mark(schema: Schema) -> int:
    """The u2 by which a record names its schema."""
    names = [schema.name, schema.key, schema.item or "", *(c.name for c in schema.columns)]
    return zlib.crc32(",".join(names).encode()) & 0xFFFF


def layout(schema: Schema) -> np.dtype:
    """The record as a numpy dtype (packed, little-endian); item is absent where the schema has none."""
    return _layout(schema.name, len(schema.columns), schema.item is not None)


@cache
def _layout(_name: str, columns: int, has_item: bool) -> np.dtype:
    fields = [
        ("magic", "u1"), ("version", "u1"), ("kind", "u1"), ("key_len", "u1"), ("item_len", "u1"),
        ("zero", "u1"), ("schema", "<u2"), ("event_ts_ns", "<i8"), ("columns", "<f8", (columns,)),
        ("key", f"S{ID_BYTES}"),
    ]  # fmt: skip
    return np.dtype(fields + [("item", f"S{ID_BYTES}")] * has_item)


def encode_binary(schema: Schema, event: Mapping) -> bytes:
    """One event, fields as on the wire (`kind` a name, one event time), as a binary record.

    InputError if an id has more than 40 bytes; Rejected if a field is missing or of a wrong type.
    """
    return encode_binary_events(schema, {name: [value] for name, value in event.items()})[0]


def encode_binary_events(schema: Schema, fields: Mapping[str, Sequence]) -> list[bytes]:
    """n events, one sequence of n values a field, as n binary records."""
    n = len(fields[schema.key])
    records = np.zeros(n, layout(schema))
    records["magic"], records["version"], records["schema"] = MAGIC, VERSION, schema_mark(schema)
    columns = [fields.get(c.name) for c in schema.columns]
    names = [name for name in fields if name.startswith("event_ts_") or name == "kind"]
    for i in range(n):
        one = {name: _plain(fields[name][i]) for name in names}
        records[i]["kind"] = kind_of(schema, one)
        records[i]["event_ts_ns"] = event_time(one)
    _put_ids(records, "key", schema.key, fields)
    if schema.item and schema.item in fields:
        _put_ids(records, "item", schema.item, fields)
    for j, column in enumerate(columns):
        if column is None:
            records["columns"][:, j] = math.nan
        else:
            records["columns"][:, j] = [math.nan if v is None else v for v in column]
    raw, size = records.tobytes(), records.dtype.itemsize
    return [raw[i * size : (i + 1) * size] for i in range(n)]


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _put_ids(records: np.ndarray, field: str, name: str, fields: Mapping[str, Sequence]) -> None:
    ids = [text_id({name: _plain(v)}, name) or b"" for v in fields[name]]
    for i, raw in enumerate(ids):
        if len(raw) > ID_BYTES:
            raise InputError(
                f"row {i}: {name} has {len(raw)} bytes, a binary record holds {ID_BYTES}; send it as JSON"
            )
        if not raw and field == "key":
            raise Rejected(f"missing {name}")
    records[field] = ids
    records[f"{field}_len"] = [len(raw) for raw in ids]


def parse_binary(schema: Schema, value: bytes) -> tuple[bytes, bytes, int, int, np.ndarray]:
    """(key, item or b"", event_ts_ns, kind's code, columns f8[C]) of one record, or Rejected."""
    form = layout(schema)
    if len(value) < form.itemsize:
        raise Rejected("truncated record")
    if value[1] != VERSION:
        raise Rejected(f"binary version {value[1]}, expected {VERSION}")
    if len(value) > form.itemsize:
        raise Rejected(f"record of {len(value)} bytes, expected {form.itemsize}")
    record = np.frombuffer(value, form)[0]
    if record["schema"] != schema_mark(schema):
        raise Rejected(_other_schema(int(record["schema"])))
    kind = int(record["kind"])
    if kind not in schema.kinds.values():
        raise Rejected(f"unknown kind {kind}")
    at = 16 + 8 * len(schema.columns)
    key = _take_id(schema.key, value, at, int(record["key_len"]))
    if not key:
        raise Rejected(f"missing {schema.key}")
    item = b""
    if schema.item:
        item = _take_id(schema.item, value, at + ID_BYTES, int(record["item_len"]))
    elif record["item_len"]:
        raise Rejected("binary record is damaged: item length without an item")
    ts = int(record["event_ts_ns"])
    if not 0 < ts < TIME_END_NS:
        raise Rejected(f"absurd event time: event_ts_ns is {ts}")
    if record["zero"]:
        raise Rejected("binary record is damaged: byte 5 is not 0")
    columns = np.where(np.isnan(record["columns"]), math.nan, record["columns"]) + 0.0
    return key, item, ts, kind, columns


def encode_request(schema: Schema, request: Mapping) -> bytes:
    """A request, fields as on the wire in JSON, as a binary record with its variable part behind it."""
    record = np.zeros(1, layout(schema))
    record["magic"], record["version"], record["schema"] = MAGIC, VERSION, schema_mark(schema)
    record["kind"], record["columns"] = REQUEST, math.nan
    if any(name.startswith("event_ts_") for name in request):
        record["event_ts_ns"] = event_time(request)
    _put_ids(record, "key", schema.key, {schema.key: [request[schema.key]]})
    names = {schema.key, schema.item, "kind", *(name for name in request if name.startswith("event_ts_"))}
    rest = {name: value for name, value in request.items() if name not in names and value is not None}
    return record.tobytes() + (msgspec.json.encode(rest) if rest else b"")


def parse_request(schema: Schema, value: bytes) -> tuple[bytes, int, bytes]:
    """(key, event_ts_ns or 0, variable part as JSON) of a binary request, or Rejected."""
    size = layout(schema).itemsize
    fixed = np.frombuffer(value[:size].ljust(size, b"\0"), layout(schema)).copy()
    ts = int(fixed["event_ts_ns"][0])
    if ts == 0:
        fixed["event_ts_ns"] = 1
    fixed["kind"] = next(iter(schema.kinds.values()))
    if len(value) < size:
        raise Rejected("truncated record")
    key = parse_binary(schema, fixed.tobytes())[0]
    return key, ts, value[size:] or b"{}"


def _other_schema(mark: int) -> str:
    known = [s.name for s in SCHEMAS.values() if schema_mark(s) == mark]
    return f"binary record of another schema{''.join(f' ({name})' for name in known)}"


def _take_id(name: str, value: bytes, at: int, n: int) -> bytes:
    if n > ID_BYTES:
        raise Rejected(f"{name} of {n} bytes exceeds {ID_BYTES}")
    raw = value[at : at + n]
    if any(value[at + n : at + ID_BYTES]):
        raise Rejected(f"binary record is damaged: bytes behind {name}")
    try:
        raw.decode()
    except UnicodeDecodeError:
        raise Rejected(f"{name} is not Unicode text") from None
    return raw

"""Events -> the JSON records that a producer sends; the decoder's inverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from streamai.events import Schema
from streamai.wire.check import TIME_SCALES

_encode = msgspec.json.Encoder().encode


def field_names(schema: Schema) -> list[str]:
    """Every field that a record of the schema may have, in the order in which they are written."""
    ids = [schema.key, schema.item] if schema.item else [schema.key]
    return [*ids, "kind", *TIME_SCALES, *(c.name for c in schema.columns)]


def encode_json(schema: Schema, event: Mapping) -> bytes:
    """One event as a JSON record: the schema's fields in its order, NaN and None left out.

    Nothing is checked: what a decoder would reject can be written, for tests of just that. A value that
    JSON cannot hold (infinity) becomes null.
    """
    return encode_events(schema, {name: [value] for name, value in event.items()})[0]


def encode_events(schema: Schema, fields: Mapping[str, Sequence]) -> list[bytes]:
    """n events, one list or array of n values a field, as n JSON records.

    Fields are those of the schema: key, item, kind (a name), one event time, columns; others are ignored.
    """
    names = [name for name in field_names(schema) if name in fields]
    columns = [_plain(fields[name]) for name in names]
    return [
        _encode({name: v for name, v in zip(names, row, strict=True) if v is not None and v == v})
        for row in zip(*columns, strict=True)
    ]


def _plain(values: Sequence) -> list:
    if isinstance(values, np.ndarray):
        return values.tolist()
    return [v.item() if isinstance(v, np.generic) else v for v in values]

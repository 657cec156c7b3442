"""Bytes of a batch -> Events. JSON objects by default, the binary record beside it, told by the first byte.

The kernel takes the plain form; msgspec and `wire/check.py` decide about the rest. Both give equal Events.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from streamai.catalogue import Catalogue
from streamai.errors import DeclarationError
from streamai.events import EVENT, REQUEST, REQUEST_KIND, Events, Request, Schema
from streamai.kernels import scan as kernel
from streamai.wire import check, request
from streamai.wire.binary import ID_BYTES, MAGIC, layout, parse_binary, parse_request, schema_mark
from streamai.wire.dead_letter import DeadLetter, Rejected

PADDING = b"\n" * 16  # the kernel reads eight bytes at once
FIELDS_MAX = 62  # one bit each
_RULES = {
    "any": kernel.ANY,
    "positive": kernel.POSITIVE,
    "non_negative": kernel.NON_NEGATIVE,
    "sign": kernel.SIGN,
}


class Decoder:
    """Decodes batches of one schema.

    catalogue    gives items their index; without one every item is unknown (-1)
    max_bytes    a longer record is a dead letter
    max_skew_ns  how far an event time may lie ahead of the record's Kafka time
    k_max        most items that a request may ask for
    """

    def __init__(
        self,
        schema: Schema,
        catalogue: Catalogue | None = None,
        max_bytes: int = 65536,
        max_skew_ns: int = 300_000_000_000,
        k_max: int = 10,
    ) -> None:
        self.schema = schema
        self.catalogue = catalogue if catalogue is not None else Catalogue.of_ids([])
        self.max_bytes = max_bytes
        self.max_skew_ns = int(max_skew_ns)
        self.k_max = k_max
        self._tables()
        self._object = msgspec.json.Decoder().decode

    def _tables(self) -> None:
        schema = self.schema
        fields = [(schema.key, kernel.KEY, 0, 0), ("kind", kernel.KIND, 0, 0)]
        fields += [(name, kernel.TIME, scale, 0) for name, scale in check.TIME_SCALES.items()]
        if schema.item:
            fields.append((schema.item, kernel.ITEM, 0, 0))
        fields += [(c.name, kernel.COLUMN, j, _RULES[c.rule]) for j, c in enumerate(schema.columns)]
        names = [f[0] for f in fields]
        if len(set(names)) < len(names):
            raise DeclarationError(f"schema {schema.name}: a field is named twice in {names}")
        if len(fields) > FIELDS_MAX:
            raise DeclarationError(f"schema {schema.name}: {len(fields)} fields; at most {FIELDS_MAX}")
        entries = fields + [(kind, kernel.KIND, code, 0) for kind, code in schema.kinds.items()]
        raw = [e[0].encode() for e in entries]
        width = -(-max(map(len, raw)) // 8) * 8
        self.names = np.zeros((len(raw), width // 8), np.uint64)
        self.spec = np.zeros((len(raw), 4), np.int64)
        for i, (name, entry) in enumerate(zip(raw, entries, strict=True)):
            self.names[i] = np.frombuffer(name.ljust(width, b"\0"), "<u8")
            self.spec[i] = (len(name), *entry[1:])
        crossed = [schema.column(c) for c in schema.crossed] if schema.crossed else [-1, -1]
        kind = schema.kinds[schema.default_kind] if schema.default_kind else -1
        required = sum(1 << j for j, c in enumerate(schema.columns) if c.required)
        shape = (len(fields), len(schema.kinds), kind, required, *crossed, self.max_bytes, self.max_skew_ns)
        self.shape = np.array(shape, np.int64)
        needs = [(schema.kinds[k], schema.column(c)) for k, c in schema.needs]
        self.needs = np.array(needs, np.int64).reshape(len(needs), 2)
        self.binary = np.array(
            [layout(schema).itemsize, ID_BYTES, ID_BYTES if schema.item else 0, schema_mark(schema)], np.int64
        )

    def decode(
        self,
        values: Sequence[bytes | None],
        offsets: np.ndarray,
        kafka_ts_ns: np.ndarray,
        topic: str,
        partition: int,
        receive_ts_ns: int = 0,
    ) -> Events:
        """Records of one partition, in offset order, -> Events; what is not good is in `.dead`.

        offsets, kafka_ts_ns  i8[n]; a Kafka time <= 0 is unknown and its event time unchecked
        """
        n = len(values)
        offsets = np.ascontiguousarray(offsets, np.int64)
        kafka_ts_ns = np.ascontiguousarray(kafka_ts_ns, np.int64)
        present = [v or b"" for v in values] if None in values else values
        joined = bytearray(b"\n").join(present)
        joined += PADDING
        sizes = np.fromiter(map(len, present), np.int64, n)
        buf = np.frombuffer(joined, np.uint8)
        rows = np.empty(n, EVENT)
        columns = np.empty((n, len(self.schema.columns)), np.float64)
        status = np.empty(n, np.uint8)
        items = self.catalogue
        back = kernel.scan(
            buf, sizes, self.names, self.spec, self.shape, self.needs, self.binary, items.table, items.hash0,
            items.hash1, offsets, kafka_ts_ns, rows, columns, status,
        )  # fmt: skip
        events = Events(topic, partition, rows, columns, buf, receive_ts_ns)
        if back:
            self._decide(events, values, joined, np.flatnonzero(status))
        return events

    def _decide(self, events: Events, values: Sequence, joined: bytearray, unsure: np.ndarray) -> None:
        """Give the records that the kernel left their row, or take it out and make a dead letter."""
        tail, found, dead = bytearray(), [], []
        for i in unsure.tolist():
            row = events.rows[i]
            try:
                parsed = self.parse(values[i], int(row["kafka_ts_ns"]), events.columns[i])
            except Rejected as e:
                events.dead.append(DeadLetter(int(row["offset"]), str(e), values[i] or b""))
                dead.append(i)
                continue
            key, item, ts, kind, asked = parsed
            if asked is not None:
                events.requests[int(row["offset"])] = asked
            at = len(joined) + len(tail)
            found.append((at, len(key), at + len(key), len(item), kind, ts, i))
            tail += key + item
        if tail:
            events.key_bytes = np.frombuffer(joined + tail, np.uint8)
        items = self.catalogue
        for key_at, key_len, item_at, item_len, kind, ts, i in found:
            kernel.set_row(
                events.key_bytes, key_at, key_len, item_at, item_len, kind, ts,
                items.table, items.hash0, items.hash1, events.rows, i,
            )  # fmt: skip
        if dead:
            events.rows = np.delete(events.rows, dead)
            events.columns = np.delete(events.columns, dead, axis=0)

    def parse(
        self, value: bytes | None, kafka_ts_ns: int, columns: np.ndarray
    ) -> tuple[bytes, bytes, int, int, Request | None]:
        """One record by the rules -> (key, item or b"", event_ts_ns, kind's code, what a request asks); fills
        columns f8[C]. A request has no item and no columns, and event time 0 when it names none.

        Rejected, with the cause, if it is not a good event.
        """
        schema = self.schema
        if value is None:
            raise Rejected("null value")
        if len(value) > self.max_bytes:
            raise Rejected(f"record of {len(value)} bytes exceeds {self.max_bytes}")
        if value[:1] == bytes([MAGIC]):
            if value[2:3] == bytes([REQUEST]) and REQUEST not in schema.kinds.values():
                key, ts, record = parse_request(schema, value)
                return self._request(key, ts, self._record(record), kafka_ts_ns, columns)
            key, item, ts, kind, columns[:] = parse_binary(schema, value)
        else:
            record = self._record(value)
            key = check.text_id(record, schema.key)
            if key is None:
                raise Rejected(f"missing {schema.key}")
            if record.get("kind") == REQUEST_KIND and REQUEST_KIND not in schema.kinds:
                timed = any(record.get(name) is not None for name in check.TIME_SCALES)
                ts = check.event_time(record) if timed else 0
                return self._request(key, ts, record, kafka_ts_ns, columns)
            item = (check.text_id(record, schema.item) if schema.item else None) or b""
            ts = check.event_time(record)
            kind = check.kind_of(schema, record)
            check.columns_of(schema, record, columns)
        check.check_skew(ts, kafka_ts_ns, self.max_skew_ns)
        check.check_columns(schema, kind, columns)
        return key, item, ts, kind, None

    def _request(self, key: bytes, ts: int, record: dict, kafka_ts_ns: int, columns: np.ndarray) -> tuple:
        check.check_skew(ts, kafka_ts_ns, self.max_skew_ns)
        columns[:] = np.nan
        return key, b"", ts, REQUEST, request.read(record, self.catalogue, self.k_max)

    def _record(self, value: bytes) -> dict:
        try:
            record = self._object(value)
        except msgspec.DecodeError as e:
            reason = str(e)
            if "truncated" in reason:
                raise Rejected("truncated record") from None
            if "out of range" in reason:
                raise Rejected("number out of range") from None
            if b"NaN" in value or b"Infinity" in value:
                raise Rejected("not JSON: NaN or Infinity") from None
            raise Rejected("not JSON") from None
        except (UnicodeDecodeError, RecursionError):
            raise Rejected("not JSON") from None
        if type(record) is not dict:
            raise Rejected("not a JSON object")
        return record

"""The scanner takes what msgspec and the rules take, with the same result; the rules name every cause."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamai.catalogue import Catalogue, hash_id
from streamai.errors import DeclarationError
from streamai.events import CLICKS, MARKET, Column, Schema
from streamai.wire.dead_letter import DeadLetter, Rejected
from streamai.wire.encode import encode_events, encode_json
from streamai.wire.json import Decoder

NOW = 1_700_000_000_000_000_000
ITEMS = Catalogue.of_ids(["i1", "i2", "7", "é"])


class Counting(Decoder):
    """Counts the records that the kernel left to the rules."""

    slow = 0

    def parse(self, *args):
        self.slow += 1
        return super().parse(*args)


def decode(decoder, values, kafka=0):
    n = len(values)
    times = np.full(n, kafka, np.int64)
    return decoder.decode(values, np.arange(100, 100 + n), times, "clicks", 3, 42)


def cause(value, schema=CLICKS, kafka=0, **settings):
    events = decode(Decoder(schema, ITEMS, **settings), [value], kafka)
    assert len(events) == 0 and len(events.dead) == 1
    assert events.dead[0].value == (value or b"") and events.dead[0].offset == 100
    return events.dead[0].cause


def check(schema, values, kafka=0):
    """Events of the decoder == what the rules say of each record, one by one."""
    decoder = Decoder(schema, ITEMS)
    events = decode(decoder, values, kafka)
    good, dead = [], []
    for i, value in enumerate(values):
        columns = np.empty(len(schema.columns))
        try:
            good.append((100 + i, *decoder.parse(value, kafka, columns), columns))
        except Rejected as e:
            dead.append(DeadLetter(100 + i, str(e), value or b""))
    assert events.dead == dead
    assert len(events) == len(good)
    for i, (offset, key, item, ts, kind, _, columns) in enumerate(good):
        row = events.rows[i]
        assert events.key(i) == key
        assert (row["hash0"], row["hash1"]) == hash_id(key.decode())
        assert (row["offset"], row["event_ts_ns"], row["kind"]) == (offset, ts, kind)
        assert (row["kafka_ts_ns"], row["spare"]) == (kafka, 0)
        assert row["item"] == (ITEMS.index(item.decode()) if item else -1)
        assert row["item_hash"] == (Catalogue.token_hash(item.decode()) if item else 0)
        # bit for bit: a scanner that is one ulp off would give live and history different features
        assert events.columns[i].tobytes() == columns.tobytes()
    return events


NUMBERS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?\Z")
PLAIN_NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(min_value=-100_000, max_value=100_000, places=4, allow_nan=False).map(str),
    NUMBERS,
)
STRINGS = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(json.dumps),
    st.text(max_size=9).map(json.dumps),
    st.text(max_size=9).map(lambda s: json.dumps(s, ensure_ascii=False)),
    st.sampled_from(['"i1"', '"i2"', '"7"', '"view"', '"buy"', '"trade"', '""', f'"{"k" * 257}"']),
)
VALUES = st.one_of(
    PLAIN_NUMBERS,
    STRINGS,
    st.sampled_from(["null", "true", "false", "NaN", "nul", "01", "1.", ".5", "-", "+1", "1e", "{}"]),
    st.sampled_from(["[1,[2]]", '{"price":1}', '"a', "tru\ne", "1 2", "\x00", "--1", "-0", "-0.0", "0e0"]),
)
SPACE = st.sampled_from(["", "", "", " ", "\n", "\t \r\n", "\x0b"])
NAMES = {
    schema.name: [schema.key, schema.item or "other", "kind", "event_ts_ns", "event_ts_us", "event_ts_ms",
                  "event_ts_s", "x", "pricey", "naïve", "pri\\u0063e", *(c.name for c in schema.columns)]
    for schema in (CLICKS, MARKET)
}  # fmt: skip


@st.composite
def records(draw, schema):
    """Mostly a good record, with a few fields replaced, added twice or cut."""
    fields = {
        schema.key: draw(st.sampled_from(['"u1"', "17", '"a long key of more than sixteen bytes"'])),
        draw(st.sampled_from(["event_ts_ms", "event_ts_ns"])): str(NOW),
        "kind": json.dumps(draw(st.sampled_from(sorted(schema.kinds)))),
    }
    if "event_ts_ms" in fields:
        fields["event_ts_ms"] = draw(st.sampled_from([str(NOW // 10**6), "1700000000000.25", "1.7e12"]))
    if schema.item:
        fields[schema.item] = draw(st.sampled_from(['"i1"', "7", '"unknown"', "null"]))
    for column in schema.columns:
        fields[column.name] = draw(st.one_of(st.sampled_from(["1", "1", "0", "null"]), PLAIN_NUMBERS))
    pairs = draw(st.permutations(list(fields.items())))
    for _ in range(draw(st.integers(0, 2))):
        pairs = [*pairs, (draw(st.sampled_from(NAMES[schema.name])), draw(VALUES))]
    gone = draw(st.sets(st.integers(0, 12), max_size=3))
    pairs = [p for i, p in enumerate(pairs) if i not in gone]
    space = draw(SPACE)
    text = ",".join(f'{space}"{name}"{space}:{space}{value}{space}' for name, value in pairs)
    raw = f"{space}{{{text}}}{space}".encode("utf-8", "surrogatepass")
    how = draw(st.integers(0, 9))
    if how == 0:
        raw = raw[: draw(st.integers(0, len(raw)))]
    elif how == 1 and raw:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :]
    return raw


@settings(max_examples=300, deadline=None)
@given(st.lists(records(CLICKS), max_size=6))
@example([b'{"user_id":"u","event_ts_s":1700000000.123456789}', None, b"", b"\n", b"\xa5"])
@example([b'{"user_id":1,"event_ts_ns":1.7e18,"event_ts_s":null}'])
@example([b'{"user_id":1,"event_ts_s":1700000000.123}', b'{"user_id":1,"event_ts_ms":1700000000000.6789}'])
@example([b'{"user_id":1,"event_ts_s":1,"price":2,"price":null}'])
@example([b'{"user_id":1,"user_id":2,"event_ts_s":1}'])
@example([b'{"user_id":1,"event_ts_s":1,"item_id":"i1","item_id":null}'])
@example([b'{"user_id":1,"event_ts_s":9214646399.9999999}', b'{"user_id":1,"event_ts_s":1e-12}'])
def test_scanner_equals_rules_on_clicks(values):
    check(CLICKS, values)


@settings(max_examples=300, deadline=None)
@given(st.lists(records(MARKET), max_size=6))
def test_scanner_equals_rules_on_market_events(values):
    check(MARKET, values, kafka=NOW - 300 * 10**9)


@settings(max_examples=300, deadline=None)
@given(st.lists(PLAIN_NUMBERS, min_size=1, max_size=8))
@example(["9007199254740993", "9007199254740993.0", "0.1", "1e22", "1e23", "9223372036854775808", "5e-324"])
def test_numbers_are_those_of_python(texts):
    schema = Schema("numbers", "k", None, {"x": 1}, (Column("v"),), default_kind="x")
    values = [b'{"k":1,"event_ts_s":1,"v":%s}' % t.encode() for t in texts]
    events = check(schema, values)
    finite = [v for v in map(float, texts) if math.isfinite(v)]
    assert events.columns[:, 0].tolist() == [v + 0.0 for v in finite]
    assert not any(math.copysign(1, v) < 0 for v in events.columns[:, 0] if v == 0)


def test_the_plain_form_never_meets_python():
    values = [
        b'{"user_id":"u%d","item_id":"i%d","kind":"cart","event_ts_ms":%d,"price":%d.25,"dwell_ms":null}'
        % (i, i, NOW // 10**6 + i, i)
        for i in range(300)
    ]
    values += [b' { "price" : 1.5e1 ,\t"extra":true,"s":"x", "event_ts_ns":%d,"user_id":7 } \r\n' % NOW]
    decoder = Counting(CLICKS, ITEMS)
    events = decode(decoder, values)
    assert decoder.slow == 0 and len(events) == 301
    assert events.rows["item"][1:3].tolist() == [0, 1] and events.rows["kind"][0] == 3
    assert events.columns[300, 0] == 15 and events.key(300) == b"7"
    assert (events.topic, events.partition, events.receive_ts_ns) == ("clicks", 3, 42)
    decode(decoder, [b'{"user_id":"\\u0061","event_ts_s":1}', b'{"user_id":"b","event_ts_s":1}'])
    assert decoder.slow == 1


def test_a_batch_is_its_records_one_by_one():
    values = [b'{"user_id":"\xc3\xa9%d","event_ts_s":1}' % i if i % 3 else b"{}" for i in range(20)]
    decoder = Decoder(CLICKS, ITEMS)
    whole = decode(decoder, values)
    single = [decode(decoder, [v]) for v in values]
    assert [whole.key(i) for i in range(len(whole))] == [e.key(0) for e in single if len(e)]
    assert whole.rows["hash0"].tolist() == [int(e.rows["hash0"][0]) for e in single if len(e)]
    assert [d.offset for d in whole.dead] == list(range(100, 120, 3))
    assert len(decode(decoder, [])) == 0


GOOD = b'"user_id":"u","event_ts_s":1700000000'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null value"),
        (b"", "truncated record"),
        (b'{"user_id":"u","event', "truncated record"),
        (b"{" + GOOD + b',"price":1} x', "not JSON"),
        (b"{'user_id':1}", "not JSON"),
        (b'{"user_id":"\xff","event_ts_s":1}', "not JSON"),
        (b"{" + GOOD + b',"price":NaN}', "not JSON: NaN or Infinity"),
        (b"{" + GOOD + b',"price":-Infinity}', "not JSON: NaN or Infinity"),
        (b"[1,2]", "not a JSON object"),
        (b"17", "not a JSON object"),
        (b"{" + GOOD + b',"price":1e999}', "number out of range"),
        (b"{" + GOOD + b',"price":1' + b"0" * 400 + b"}", "number out of range"),
        (b"{" + GOOD + b',"x":"' + b"y" * 70000 + b'"}', "record of 70046 bytes exceeds 65536"),
        (b'{"event_ts_s":1}', "missing user_id"),
        (b'{"user_id":null,"event_ts_s":1}', "missing user_id"),
        (b'{"user_id":"","event_ts_s":1}', "empty user_id"),
        (b'{"user_id":"u","event_ts_s":1,"item_id":""}', "empty item_id"),
        (b'{"user_id":"%s","event_ts_s":1}' % (b"k" * 257), "user_id of 257 bytes exceeds 256"),
        (b'{"user_id":1.5,"event_ts_s":1}', "wrong type: user_id is a fraction"),
        (b'{"user_id":true,"event_ts_s":1}', "wrong type: user_id is a boolean"),
        (b"{" + GOOD + b',"item_id":[1]}', "wrong type: item_id is a list"),
        (b"{" + GOOD + b',"price":"1"}', "wrong type: price is a string"),
        (b"{" + GOOD + b',"price":{}}', "wrong type: price is an object"),
        (b"{" + GOOD + b',"kind":3}', "wrong type: kind is a number"),
        (b"{" + GOOD + b',"kind":"foo"}', "unknown kind 'foo'"),
        (b'{"user_id":"u"}', "missing event time"),
        (b'{"user_id":"u","event_ts_s":"now"}', "wrong type: event_ts_s is a string"),
        (b"{" + GOOD + b',"event_ts_ms":1}', "more than one event time: event_ts_ms, event_ts_s"),
        (b'{"user_id":"u","event_ts_s":0}', "absurd event time: event_ts_s is 0"),
        (b'{"user_id":"u","event_ts_ms":-5}', "absurd event time: event_ts_ms is -5"),
        (b'{"user_id":"u","event_ts_s":1700000000000}', "absurd event time: event_ts_s is 1700000000000"),
        (b'{"user_id":"u","event_ts_s":1e300}', "absurd event time: event_ts_s is 1e+300"),
        (b"{" + GOOD + b',"price":-1}', "negative price: -1.0"),
        (b"{" + GOOD + b',"quantity":-0.5}', "negative quantity: -0.5"),
    ],
)
def test_causes_of_clicks(value, expected):
    assert cause(value) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"bid": 101, "ask": 100}, "bid above ask: 101.0 > 100.0"),
        ({"bid": 0, "ask": 1}, "zero bid"),
        ({"bid": -1}, "negative bid: -1.0"),
        ({"bid_size": -1}, "negative bid_size: -1.0"),
        ({"side": 2}, "side is 2.0, expected -1, 0 or 1"),
        ({"kind": "trade", "size": 1}, "trade without price"),
        ({"kind": "trade", "price": 1}, "trade without size"),
        ({"kind": "view"}, "unknown kind 'view'"),
    ],
)
def test_causes_of_market_events(fields, expected):
    assert cause(json.dumps({"instrument": "A", "event_ts_s": 1, **fields}).encode(), MARKET) == expected


def test_a_quote_needs_no_price_and_a_locked_book_is_good():
    values = [b'{"instrument":"A","event_ts_s":1,"bid":5,"ask":5}', b'{"instrument":"A","event_ts_s":1}']
    assert len(check(MARKET, values)) == 2


def test_a_required_column_and_a_schema_without_a_default_kind():
    schema = Schema("s", "k", None, {"x": 1}, (Column("v", required=True),))
    assert cause(b'{"k":1,"kind":"x","event_ts_s":1}', schema) == "missing v"
    assert cause(b'{"k":1,"v":1,"event_ts_s":1}', schema) == "missing kind"
    assert len(check(schema, [b'{"k":1,"kind":"x","v":1,"event_ts_s":1}'])) == 1


@pytest.mark.parametrize(
    ("ahead_s", "says"), [(301, "5 min"), (540, "9 min"), (100, "100 s"), (86400, "24 h"), (6000, "100 min")]
)
def test_the_future_is_measured_from_the_record_s_own_time(ahead_s, says):
    value = b'{"user_id":"u","event_ts_ns":%d}' % (NOW + ahead_s * 10**9)
    skew = min(300, ahead_s - 1) * 10**9
    assert cause(value, kafka=NOW, max_skew_ns=skew) == f"event time {says} ahead of the record's Kafka time"
    assert len(decode(Decoder(CLICKS, max_skew_ns=ahead_s * 10**9), [value], NOW)) == 1
    assert len(decode(Decoder(CLICKS), [value], 0)) == len(decode(Decoder(CLICKS), [value], -1)) == 1


def test_dead_letters_carry_their_cause_and_place():
    letter = DeadLetter(17, "null value", b"")
    assert letter.headers("clicks", 2) == [("cause", b"null value"), ("id", b"clicks/2/17")]


def test_fields_named_twice_are_refused():
    with pytest.raises(DeclarationError, match="named twice"):
        Decoder(Schema("s", "k", "k", {"x": 1}, ()))


def test_what_is_encoded_decodes():
    fields = {
        "user_id": ["a", 'q"\\', "é"],
        "item_id": ["i1", None, "i2"],
        "kind": ["view", "buy", "cart"],
        "event_ts_ns": np.array([1, 2, 3]),
        "price": np.array([1.5, np.nan, 0.1], np.float64),
        "ignored": [1, 2, 3],
    }
    values = encode_events(CLICKS, fields)
    assert values[1] == b'{"user_id":"q\\"\\\\","kind":"buy","event_ts_ns":2}'
    one = {name: column[0] for name, column in fields.items()}
    assert encode_json(CLICKS, one) == values[0]
    events = check(CLICKS, values)
    assert [events.key(i).decode() for i in range(3)] == fields["user_id"]
    assert struct.pack("3d", *events.columns[:, 0]) == fields["price"].tobytes()

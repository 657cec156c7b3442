"""The binary record gives the events that JSON gives, and names what is wrong with it."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai.catalogue import Catalogue
from streamai.errors import InputError
from streamai.events import CLICKS, MARKET
from streamai.wire.binary import encode_binary, encode_binary_events, layout
from streamai.wire.dead_letter import Rejected
from streamai.wire.encode import encode_events
from streamai.wire.json import Decoder

ITEMS = Catalogue.of_ids(["i1", "i2"])
NOW = 1_700_000_000_000_000_000
CLICK = {"user_id": "u1", "item_id": "i2", "kind": "buy", "event_ts_ns": NOW, "price": 2.5}


def decode(schema, values, kafka=0):
    n = len(values)
    return Decoder(schema, ITEMS).decode(values, np.arange(n), np.full(n, kafka, np.int64), "t", 0)


def cause(value, schema=CLICKS, kafka=0):
    events = decode(schema, [value], kafka)
    assert len(events) == 0 and events.dead[0].value == value
    return events.dead[0].cause


def same(a, b):
    assert [d.cause for d in a.dead] == [d.cause for d in b.dead]
    for name in ("hash0", "hash1", "event_ts_ns", "offset", "item", "item_hash", "kind"):
        assert a.rows[name].tolist() == b.rows[name].tolist()
    assert a.columns.tobytes() == b.columns.tobytes()
    assert [a.key(i) for i in range(len(a))] == [b.key(i) for i in range(len(b))]


def test_sizes_are_as_documented():
    assert layout(CLICKS).itemsize == 120 and layout(MARKET).itemsize == 112
    value = encode_binary(CLICKS, CLICK)
    assert len(value) == 120 and value[0] == 0xA5 and value[1] == 1 and value[2] == 4
    assert struct.unpack_from("<q3d", value, 8)[:2] == (NOW, 2.5)
    assert value[40:43] == b"u1\0" and value[80:83] == b"i2\0"


FLOATS = st.one_of(st.sampled_from([math.nan, 0.0, -0.0, 1.0, -1.0]), st.floats(allow_infinity=False))
ASCII = st.text(st.characters(max_codepoint=126), max_size=40)
IDS = st.one_of(st.sampled_from(["i1", "u", "é" * 20]), ASCII)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(IDS.filter(len), IDS.filter(len), st.sampled_from(sorted(CLICKS.kinds)),
                          st.integers(1, 2**62), FLOATS, FLOATS), min_size=1, max_size=8))  # fmt: skip
def test_binary_equals_json_on_clicks(rows):
    names = ["user_id", "item_id", "kind", "event_ts_ns", "price", "dwell_ms"]
    fields = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    same(decode(CLICKS, encode_binary_events(CLICKS, fields)), decode(CLICKS, encode_events(CLICKS, fields)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(MARKET.kinds)), FLOATS, FLOATS, FLOATS, FLOATS), max_size=8))
def test_binary_equals_json_on_market_events(rows):
    names = ["kind", "bid", "ask", "price", "size"]
    fields = {name: [row[j] for row in rows] for j, name in enumerate(names)}
    fields |= {"instrument": ["AMZN"] * len(rows), "event_ts_us": [NOW // 1000] * len(rows)}
    same(decode(MARKET, encode_binary_events(MARKET, fields)), decode(MARKET, encode_events(MARKET, fields)))


def test_both_forms_may_be_in_one_topic():
    values = [encode_binary(CLICKS, CLICK), encode_events(CLICKS, {k: [v] for k, v in CLICK.items()})[0]] * 3
    events = decode(CLICKS, values)
    assert len(events) == 6 and set(events.rows["item"].tolist()) == {1}
    assert len({events.rows["hash0"][i] for i in range(6)}) == 1


def test_bytes_that_look_like_newlines_do_not_cut_a_record():
    price = struct.unpack("<d", b"\n" * 8)[0]
    value = encode_binary(CLICKS, {**CLICK, "price": price, "event_ts_ns": 0x0A0A0A0A0A})
    assert len(decode(CLICKS, [value, value])) == 2


def change(value, at, raw):
    return value[:at] + raw + value[at + len(raw) :]


VALUE = encode_binary(CLICKS, CLICK)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (VALUE[:119], "truncated record"),
        (VALUE[:1], "truncated record"),
        (VALUE + b"\0", "record of 121 bytes, expected 120"),
        (change(VALUE, 1, b"\2"), "binary version 2, expected 1"),
        (change(VALUE, 2, b"\x09"), "unknown kind 9"),
        (change(VALUE, 3, b"\0") [:40] + bytes(40) + VALUE[80:], "missing user_id"),
        (change(VALUE, 3, b"\x29"), "user_id of 41 bytes exceeds 40"),
        (change(VALUE, 3, b"\1"), "binary record is damaged: bytes behind user_id"),
        (change(VALUE, 5, b"\1"), "binary record is damaged: byte 5 is not 0"),
        (change(VALUE, 8, bytes(8)), "absurd event time: event_ts_ns is 0"),
        (change(VALUE, 16, struct.pack("<d", -1)), "negative price: -1.0"),
        (change(VALUE, 16, struct.pack("<d", math.inf)), "not finite: price"),
        (change(VALUE, 40, b"\xff"), "user_id is not Unicode text"),
        (change(VALUE, 6, b"\0\0"), "binary record of another schema"),
    ],
)  # fmt: skip
def test_causes(value, expected):
    assert cause(value) == expected


def test_other_causes():
    late = encode_binary(CLICKS, CLICK)
    assert cause(late, kafka=NOW - 600 * 10**9) == "event time 10 min ahead of the record's Kafka time"
    book = encode_binary(MARKET, {"instrument": "A", "event_ts_s": 1, "bid": 2, "ask": 1})
    assert cause(book, MARKET) == "bid above ask: 2.0 > 1.0"
    assert cause(book + bytes(8), CLICKS) == "binary record of another schema (market)"
    item = change(encode_binary(MARKET, {"instrument": "A", "event_ts_s": 1}), 4, b"\1")
    assert cause(item, MARKET) == "binary record is damaged: item length without an item"


def test_what_a_record_cannot_hold_is_refused():
    with pytest.raises(InputError, match="user_id has 41 bytes, a binary record holds 40"):
        encode_binary(CLICKS, {**CLICK, "user_id": "k" * 41})
    with pytest.raises(Rejected, match="unknown kind 'foo'"):
        encode_binary(CLICKS, {**CLICK, "kind": "foo"})
    with pytest.raises(Rejected, match="missing user_id"):
        encode_binary(CLICKS, {**CLICK, "user_id": None})

"""Outputs: valid JSON, the same bytes for the same numbers, nothing lost in a number; and their readers."""

import json
import math
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.events import CLICKS, EVENT, MARKET, Events
from streamai.kernels.format import put_escaped, put_int, put_number, put_score
from streamai.scored import LATE, SCORED, Scored
from streamai.wire.output import Deduplicator, Encoder, parse_id, tier_of

ITEMS = Catalogue.of_ids(["i1", 'say "hi"', "é"])
PLAN, MODEL = "0123456789abcdef", "fedcba9876543210"


def text(put, *args) -> str:
    out = np.full(4096, 63, np.uint8)
    return out[: put(out, 0, *args)].tobytes().decode()


def number(v, digits=9):
    return text(put_number, float(v), digits)


def significant(v, digits):
    """v rounded to significant digits, half to even on the exact value: what the C library prints."""
    return float(f"{v:.{digits - 1}e}")


def scored(n=3, f=0, k=0, keys=None, schema=CLICKS, tier=Tier.FULL, partition=0):
    raw = [key.encode() for key in (keys or [f"u{i}" for i in range(n)])]
    rows = np.zeros(n, EVENT)
    rows["key_len"] = [len(b) for b in raw]
    rows["key_at"] = np.cumsum([0, *rows["key_len"]])[:-1]
    rows["offset"] = np.arange(17, 17 + n)
    rows["event_ts_ns"] = 123 + np.arange(n)
    key_bytes = np.frombuffer(bytearray(b"".join(raw)), np.uint8)
    events = Events("clicks", partition, rows, np.full((n, len(schema.columns)), np.nan), key_bytes)
    return Scored(
        events,
        status=np.full(n, SCORED, np.uint8),
        tier=np.full(n, tier, np.uint8),
        features=np.zeros((n, f), np.float32),
        hidden=np.zeros((n, 0), np.float32),
        items=np.zeros((n, k), np.int32),
        scores=np.zeros((n, k), np.float32),
        target=np.full(n, np.nan),
    )


F4 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=400, deadline=None)
@given(st.lists(F4, min_size=1, max_size=20))
@example([0.1, 1e-45, 1.1754942e-38, 3.4028235e38, 16777217.0, 8388607.5, 0.99999994])
@example([9.9999999e-5, 1e15, 1e-5, 9.999999e-6, 99999.99, 999999.94, 0.5, 1e20, 123456.79, 2.0**-30])
def test_a_float32_comes_back_from_nine_digits(values):
    for v in map(float, np.array(values, np.float32)):
        s = number(v)
        assert np.float32(json.loads(s)) == np.float32(v)
        digits = s.lstrip("-0.").split("e")[0].replace(".", "")
        if v == round(v) and abs(v) < 1e15:
            assert s == str(int(v))
        else:
            assert len(digits) <= 9 and not (("." in s) and s.split("e")[0].endswith("0"))


def test_every_power_of_two_and_its_neighbours_come_back():
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    infinity = np.float32(np.inf)
    for v in np.concatenate([powers, np.nextafter(powers, infinity), np.nextafter(powers, -infinity)]):
        if np.isfinite(v):
            assert np.float32(json.loads(number(v))) == v
            if v != np.rint(v):
                assert json.loads(number(v)) == significant(float(v), 9)


@settings(max_examples=400, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(0, 9))
def test_a_decimal_price_comes_back_from_fifteen_digits(mantissa, places):
    v = mantissa / 10**places
    assert json.loads(number(v, 15)) == v


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-300, 1e300), st.sampled_from([9, 15]))
@example(9.9999999999e22, 9)
@example(999999999.6, 9)
@example(5e-324, 15)
@example(1.797e308, 15)
def test_any_float_is_right_to_the_stated_digits(v, digits):
    if v != round(v) or v >= 1e15:
        assert json.loads(number(v, digits)) == pytest.approx(v, rel=0.51 * 10.0 ** (1 - digits) + 1e-13)
        assert number(-v, digits) == "-" + number(v, digits)


@pytest.mark.parametrize(
    ("v", "expected"),
    [(0.0, "0"), (-0.0, "0"), (3, "3"), (-17, "-17"), (0.1, "0.1"), (1 / 3, "0.333333333"), (1e-7, "1e-7"),
     (12345.678, "12345.678"), (1.5e-10, "1.5e-10"), (1e15, "1e15"), (1.25e20, "1.25e20"),
     (1e9, "1000000000"), (math.nan, "null"), (math.inf, "null"), (-math.inf, "null"), (0.00012, "0.00012"),
     (2231.505, "2231.505"), (9999999999.5, "10000000000")],
)  # fmt: skip
def test_numbers(v, expected):
    assert number(v) == expected


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e6, 1e6, width=32))
@example(0.4999995)
@example(-4e-7)
def test_scores_are_right_to_six_decimals(v):
    s = text(put_score, float(v))
    assert abs(float(s) - v) <= 0.5e-6 + 1e-9 * abs(v)
    assert s not in ("-0", "") and not ("." in s and s.endswith("0"))
    assert text(put_score, 1e13) == "10000000000000" and text(put_score, math.nan) == "null"


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
@example(-(2**63))
def test_integers(v):
    assert text(put_int, np.int64(v)) == str(v)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("\x00\x1f\"\\/\b\f\n\r\t\x7f é€😀")
def test_text_is_escaped_as_msgspec_does(s):
    raw = np.frombuffer(bytearray(s.encode() + b"!"), np.uint8)
    assert text(put_escaped, raw, 0, len(raw) - 1) == msgspec.json.encode(s).decode()[1:-1]


def test_features():
    s = scored(2, f=2)
    s.features[0] = [3, np.nan]
    s.features[1] = [0.25, -1]
    values, which = Encoder("clicks", ("views_5m", "ctr"), PLAN).features(s)
    assert values == [
        b'{"id":"clicks/0/17","key":"u0","event_ts_ns":123,"features":{"views_5m":3,"ctr":null},'
        b'"tier":"full","model":null,"plan":"0123456789abcdef"}',
        b'{"id":"clicks/0/18","key":"u1","event_ts_ns":124,"features":{"views_5m":0.25,"ctr":-1},'
        b'"tier":"full","model":null,"plan":"0123456789abcdef"}',
    ]
    assert which.tolist() == [0, 1]


def test_recommendations():
    s = scored(3, k=3, keys=["u", 'q"\\', "é\n"], partition=4)
    s.items[:] = [[0, 1, 2], [2, -1, -1], [-1, -1, -1]]
    s.scores[:] = [[1.2345678, 1, 0.5], [0.1, 9, 9], [9, 9, 9]]
    s.tier[1] = Tier.PRIOR
    values, which = Encoder("clicks", (), PLAN, MODEL, ITEMS, ITEMS.digest).recommendations(s)
    digests = {"model": MODEL, "plan": PLAN, "catalogue": ITEMS.digest}
    assert [json.loads(v) for v in values] == [
        {"id": "clicks/4/17", "key": "u", "event_ts_ns": 123, "items": ["i1", 'say "hi"', "é"],
         "scores": [1.234568, 1, 0.5], "tier": "full", **digests},
        {"id": "clicks/4/18", "key": 'q"\\', "event_ts_ns": 124, "items": ["é"], "scores": [0.1],
         "tier": "prior", **digests},
        {"id": "clicks/4/19", "key": "é\n", "event_ts_ns": 125, "items": [], "scores": [], "tier": "full",
         **digests},
    ]  # fmt: skip
    assert list(json.loads(values[0])) == [
        "id", "key", "event_ts_ns", "items", "scores", "tier", "model", "plan", "catalogue"
    ]  # fmt: skip


def test_signals():
    s = scored(3, k=6, schema=MARKET)
    s.events.columns[:2, MARKET.column("bid")] = [2231, 1]
    s.events.columns[:2, MARKET.column("ask")] = [2232.01, np.nan]
    s.scores[:] = np.array([0.1, 0.2, 0.7, 0.5, 0.3, 0.2], np.float32)
    s.target[:2] = [1, -0.5]
    s.tier[2] = Tier.PRIOR
    values, _ = Encoder("market", (), PLAN, None, horizons=("100ms", "1s")).signals(s)
    assert values[0] == (
        b'{"id":"market/0/17","key":"u0","event_ts_ns":123,"mid":2231.505,"signals":{"100ms":{"signal":0.6,'
        b'"confidence":0.7},"1s":{"signal":-0.3,"confidence":0.5}},"target":1,"tier":"full","model":null,'
        b'"plan":"0123456789abcdef"}'
    )
    second, prior = json.loads(values[1]), json.loads(values[2])
    assert second["mid"] is None and second["target"] == -0.5
    assert (prior["signals"], prior["target"], prior["tier"]) == ({}, None, "prior")
    no_mid = Encoder("market", horizons=("100ms", "1s"), schema=CLICKS).signals(s)[0][0]
    assert json.loads(no_mid)["mid"] is None


def test_scores_of_a_scorer_of_one_s_own():
    s = scored(1, k=2)
    s.scores[0] = [0.5, np.nan]
    assert Encoder("clicks", plan=PLAN).scores(s)[0] == [
        b'{"id":"clicks/0/17","key":"u0","event_ts_ns":123,"scores":[0.5,null],"tier":"full","model":null,'
        b'"plan":"0123456789abcdef"}'
    ]


@pytest.mark.parametrize("output", ["features", "recommendations", "signals", "scores"])
def test_late_and_silent_events_give_nothing(output):
    s = scored(4, f=1, k=3)
    s.status[1], s.tier[2] = LATE, Tier.SILENT
    encoder = Encoder("clicks", ("x",), PLAN, MODEL, ITEMS, ITEMS.digest, ("1s",))
    values, which = getattr(encoder, output)(s)
    assert which.tolist() == [0, 3] and [parse_id(v)[2] for v in values] == [17, 20]
    assert all(json.loads(v) for v in values)
    s.status[:] = LATE
    assert getattr(encoder, output)(s)[0] == []


def test_an_item_outside_the_catalogue_is_refused():
    s = scored(1, k=1)
    s.items[0] = 3
    with pytest.raises(ValueError, match="item 3 of a catalogue of 3"):
        Encoder("clicks", catalogue=ITEMS).recommendations(s)


def test_no_features_at_all():
    assert json.loads(Encoder("clicks").features(scored(1))[0][0])["features"] == {}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_batch_is_its_events_one_by_one_and_never_overflows(data):
    n = data.draw(st.integers(1, 5))
    keys = data.draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
                              min_size=n, max_size=n))  # fmt: skip
    s = scored(n, f=3, k=2, keys=keys)
    bits = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=3 * n, max_size=3 * n))
    s.features[:] = np.array(bits, np.uint32).view(np.float32).reshape(n, 3)
    s.scores[:] = s.features[:, :2]
    s.items[:] = np.array(bits[: 2 * n]).reshape(n, 2) % 4 - 1
    s.target[:] = [struct.unpack("d", struct.pack("II", b, b))[0] for b in bits[:n]]
    encoder = Encoder("clicks", ("a", "b", "c"), PLAN, MODEL, ITEMS, ITEMS.digest)
    for output in ("features", "recommendations", "signals", "scores"):
        values, _ = getattr(encoder, output)(s)
        assert [json.loads(v)["key"] for v in values] == keys
        for i in range(n):
            one = scored(1, f=3, k=2, keys=[keys[i]])
            one.events.rows[0] = s.events.rows[i]
            one.events.rows[0]["key_at"] = 0
            one.features[0], one.scores[0], one.items[0] = s.features[i], s.scores[i], s.items[i]
            one.target[0] = s.target[i]
            assert getattr(encoder, output)(one)[0] == [values[i]]


def test_readers_of_outputs():
    s = scored(1, k=1, keys=['"tier":"prior"'], tier=Tier.RANK)
    (value,), _ = Encoder("a.b-c_d", catalogue=ITEMS).recommendations(s)
    assert parse_id(value) == ("a.b-c_d", 0, 17)
    assert tier_of(value) is Tier.RANK
    assert tier_of(Encoder("t").features(s)[0][0]) is Tier.RANK
    assert tier_of(b'{"id":"t/0/1"}') is None
    with pytest.raises(ValueError, match="not an output of streamai"):
        parse_id(b"{}")


def test_doubles_are_dropped_and_the_memory_is_bounded():
    def value(partition, offset):
        return b'{"id":"clicks/%d/%d","key":"u"}' % (partition, offset)

    seen = Deduplicator()
    read = [(0, 1), (0, 2), (1, 1), (0, 3), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]
    kept = [(p, o) for p, o in read if seen.is_new(value(p, o))]
    assert kept == [(0, 1), (0, 2), (1, 1), (0, 3), (0, 4), (1, 2)]
    assert len(seen.seen) == 2
    # another output partition has an order of its own
    assert seen.is_new(value(0, 1), output_partition=1) and not seen.is_new(value(0, 1), output_partition=1)

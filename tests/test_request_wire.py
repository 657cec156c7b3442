"""Requests on the wire and in the catalogue's terms: what is read, and what is refused with its cause."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.clicks import UserClicks
from streamai.catalogue import Catalogue
from streamai.engine import Engine
from streamai.errors import DeclarationError
from streamai.events import CLICKS, REQUEST
from streamai.flow import Flow
from streamai.wire.binary import encode_binary, encode_request
from streamai.wire.json import Decoder
from tests.made import ITEMS
from tests.test_request import asks, feed

CATALOGUE = Catalogue.load(ITEMS)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"k": 0}, "k out of range: 0, expected 1 to 20"),
        ({"k": 21}, "k out of range: 21, expected 1 to 20"),
        ({"k": "5"}, "k out of range: 5"),
        ({"k": True}, "k out of range: True"),
        ({"candidates": "a"}, "wrong type: candidates is not a list"),
        ({"candidates": [1.5]}, "wrong type: candidates holds"),
        ({"exclude": ["a"] * 1001}, "exclude of 1001 items exceeds 1000"),
        ({"filters": []}, "malformed filter: filters is not an object"),
        ({"filters": {"colour": "red"}}, "malformed filter: filter of an unknown column: 'colour'"),
        ({"filters": {"price": {"over": 3}}}, "malformed filter: filter of price"),
        ({"filters": {"price": {"min": "3"}}}, "malformed filter: filter of price: '3' is no number"),
        ({"filters": {"category": {"min": 3}}}, "malformed filter: filter of category: min and max"),
        ({"filters": {"category": []}}, "malformed filter: filter of category: 0 values"),
        ({"event_ts_ns": 1.5e300}, "absurd event time"),
        ({"user_id": ""}, "empty user_id"),
    ],
)
def test_bad_requests_are_dead_letters_with_their_cause(fields, cause):
    decoder = Decoder(CLICKS, CATALOGUE, k_max=20)
    events = decoder.decode([asks("u", **fields)], np.array([7]), np.zeros(1, "i8"), "clicks", 0)
    assert len(events) == 0 and not events.requests and events.dead[0].cause.startswith(cause)


IDS = st.sampled_from([*CATALOGUE.ids[:9], "gone", "é"])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "candidates": st.lists(IDS, max_size=6),
        "exclude": st.lists(IDS, max_size=6),
        "k": st.integers(-1, 22),
        "filters": st.one_of(
            st.fixed_dictionaries({}, optional={
                "category": st.lists(st.sampled_from(["Cameras", "x"]), max_size=2),
                "price": st.fixed_dictionaries({}, optional={"min": st.floats(0, 9)}),
            }),
            st.integers(),
        ),
        "event_ts_ns": st.integers(-1, 2**62),
    },
)  # fmt: skip


@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), FIELDS), max_size=5))
@settings(max_examples=60, deadline=None)
def test_json_and_binary_requests_give_equal_events(drawn):
    values, records = [], []
    for user, fields in drawn:
        try:
            record = encode_request(CLICKS, {"user_id": user} | fields)
        except Exception:
            continue
        values.append(asks(user, **fields))
        records.append(record)
    event = {"user_id": "a", "item_id": CATALOGUE.ids[3], "event_ts_ns": 5}
    values.append(json.dumps(event).encode())
    records.append(encode_binary(CLICKS, event))
    decoder = Decoder(CLICKS, CATALOGUE, k_max=20)
    zeros = np.zeros(len(values), "i8")
    a, b = (decoder.decode(v, np.arange(len(v)), zeros, "clicks", 0) for v in (values, records))
    names = [n for n in a.rows.dtype.names if n != "key_at"]
    assert a.rows[names].tolist() == b.rows[names].tolist() and a.columns.tobytes() == b.columns.tobytes()
    assert [a.key(i) for i in range(len(a))] == [b.key(i) for i in range(len(b))]
    assert [(d.offset, d.cause) for d in a.dead] == [(d.offset, d.cause) for d in b.dead]
    assert a.requests.keys() == b.requests.keys()
    for offset, one in a.requests.items():
        assert repr(one) == repr(b.requests[offset])
    assert (a.rows["kind"] == REQUEST).sum() == len(a.requests)


def test_attributes_of_the_catalogue(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("id,brand,stars,tags\na,Canon,4.5,sale|new\nb,Leica,,\nc,Canon,3,new\n")
    catalogue = Catalogue.load(path)
    assert catalogue.attributes == {
        "brand": ["Canon", "Leica", "Canon"], "stars": [4.5, None, 3.0], "tags": ["sale|new", None, "new"],
    }  # fmt: skip
    flow = Flow("ask", "clicks", [UserClicks], catalogue=catalogue)
    event = {"user_id": "u", "item_id": "a", "event_ts_ns": 10**18}
    engine = Engine(flow)
    feed(engine, [json.dumps(event | {"item_id": i}).encode() for i in "abc"])

    def answer(**filters):
        return set(feed(engine, [asks("u", filters=filters)], engine.position)[0]["items"])

    assert answer(brand="Canon") == {"a", "c"} and answer(brand=["Leica", "Nikon"]) == {"b"}
    assert answer(stars={"min": 3}) == {"a", "c"} and answer(stars=[3, 4]) == {"c"}
    assert answer(brand=["Nikon"], stars={"min": 1}) == set()
    assert answer(tags=["sale"]) == {"a"} and answer(tags=["new", "sale"], stars={"max": 4}) == {"c"}
    other = Catalogue(catalogue.ids, attributes={"brand": ["Canon", "Leica", "Leica"]})
    assert other.digest != catalogue.digest
    more = Catalogue(["d"], attributes={"brand": ["X"]}).extend(["a"])
    assert more.attributes == {"brand": [None, "X"]}


def test_k_max_is_checked():
    with pytest.raises(DeclarationError, match="k_max=5"):
        Flow("ask", "clicks", [UserClicks], catalogue=ITEMS, k_max=5)

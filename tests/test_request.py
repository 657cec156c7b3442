"""Requests: an answer from what is known now, and not a bit of state moved by it."""

import json

import numpy as np
import pytest

from features.clicks import ItemClicks, UserClicks
from features.market import Book
from streamai import FeatureView, count
from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.engine import Engine, open_engine
from streamai.events import MARKET
from streamai.flow import Flow
from streamai.kernels import context as c
from streamai.wire.codec import Codec
from tests.made import ITEMS, click_values, market_values, random_model

CATALOGUE = Catalogue.load(ITEMS)
CAMERAS = [i for i, name in enumerate(CATALOGUE.categories) if name == "Cameras"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("m") / "m.weights")


@pytest.fixture(scope="module")
def flow(model):
    return Flow("ask", "clicks", [UserClicks, ItemClicks], catalogue=ITEMS, model=model, k_max=20)


def asks(user: str, **fields) -> bytes:
    return json.dumps({"user_id": user, "kind": "request"} | fields).encode()


def user_of(value: bytes) -> str:
    return json.loads(value)["user_id"]


def feed(engine: Engine, values: list, first: int = 0, cut: int = 256, tier=Tier.FULL) -> list[dict]:
    """Values through decoder, engine and encoder; the outputs of both topics, parsed, in order."""
    return [json.loads(v) for v in outputs(engine, values, first, cut, tier)]


def outputs(engine: Engine, values: list, first: int = 0, cut: int = 256, tier=Tier.FULL) -> list[bytes]:
    codec = Codec(engine.flow, engine)
    events = codec.decoder.decode(
        values, np.arange(first, first + len(values)), np.zeros(len(values), "i8"), engine.flow.source, 0
    )
    assert not events.dead, events.dead
    out, at = [], 0
    while at < len(events):
        scored = engine.step(events[at : at + cut], tier)
        at += len(scored)
        if len(scored) == 0:
            engine.checkpoint()
        for topic, (found, which) in sorted(codec.encode(scored).items()):
            if topic != f"{engine.flow.source}.features":
                out += [
                    (int(scored.events.rows["offset"][j]), topic, v)
                    for v, j in zip(found, which, strict=True)
                ]
    return [v for _, _, v in sorted(out)]


def state_of(engine: Engine) -> list[bytes]:
    """Everything that a checkpoint would hold, and what decides the next events."""
    names = ("items_f8", "ids", "w", "pop", "fast", "norm", "top_pop", "top_fast", "dirty", "item_dirty")
    clock = engine.clock.copy()
    clock[c.STAMP] = 0  # scratch: numbers the candidates' marks
    return [
        engine.slab.rows.tobytes(), clock.tobytes(),
        *(engine.state_arrays[name].tobytes() for name in names),
    ]  # fmt: skip


def test_an_answer_is_what_the_event_before_it_got(flow):
    """Nothing happened between a user's event and the request: the same list, the same scores."""
    values = click_values(600, seed=4)
    engine = Engine(flow)
    got = feed(engine, [*values, asks(user_of(values[-1]))])
    event, answer = got[-2:]
    assert answer["items"] == event["items"] and answer["scores"] == event["scores"]
    assert answer["event_ts_ns"] == event["event_ts_ns"] and answer["key"] == event["key"]
    assert answer["request"] is True and "request" not in event
    assert set(answer) - set(event) == {"request"}


def test_features_are_those_of_now(flow):
    """Counts as after the event at the same time; an hour later the short windows are empty."""
    engine = Engine(flow)
    values = click_values(600, seed=4)
    user = user_of(values[-1])
    codec = Codec(flow, engine)
    later = int(feed(engine, values)[-1]["event_ts_ns"]) + 3_600_000_000_000
    names = [n for n in engine.plan.names if n.startswith(("views", "clicks", "buys"))]
    assert names
    events = codec.decoder.decode(
        [asks(user), asks(user, event_ts_ns=later)], np.arange(600, 602), np.zeros(2, "i8"), "clicks", 0
    )
    scored = engine.step(events, Tier.FULL)
    assert np.isnan(scored.features[:, len(engine.plan.names) :]).all()  # a request has no item
    now, then = (dict(zip(engine.plan.names, row.tolist(), strict=False)) for row in scored.features)
    again = Engine(flow)
    codec = Codec(flow, again)
    events = codec.decoder.decode(values, np.arange(600), np.zeros(600, "i8"), "clicks", 0)
    for at in range(0, 600, 200):
        scored = again.step(events[at : at + 200], Tier.FULL)
    last = dict(zip(again.plan.names, scored.features[-1].tolist(), strict=False))
    assert {n: now[n] for n in names} == {n: last[n] for n in names}
    assert then["views_5m"] == 0


@pytest.mark.parametrize("tier", [Tier.PRIOR, Tier.RANK, Tier.FULL])
def test_state_before_is_state_after(flow, tier):
    engine = Engine(flow)
    values = click_values(500, seed=5)
    feed(engine, values)
    before = state_of(engine)
    users = [user_of(v) for v in values[:40]]
    feed(engine, [
        *(asks(u) for u in users), asks("nobody"), asks("nobody", event_ts_ns=1),
        *(asks(u, event_ts_ns=1_900_000_000_000_000_000, filters={"category": "Cameras"}) for u in users),
        *(asks(u, candidates=["cameras-01", "x"], exclude=["cameras-02"], k=20) for u in users),
    ], 500, tier=tier)  # fmt: skip
    assert state_of(engine) == before
    assert not engine.exclude.any()
    assert engine.position == 500 + 2 + 3 * len(users)


def test_events_are_scored_as_if_nobody_had_asked(flow):
    values = click_values(400, seed=6)
    alone = outputs(Engine(flow), values)
    mixed, kept = [], []
    for i, v in enumerate(values):
        if i % 3 == 0:
            mixed.append(asks(user_of(values[i - 1]), filters={"price": {"max": 200}}, k=15))
        kept.append(len(mixed))
        mixed.append(v)
    got = [v for v in outputs(Engine(flow), mixed) if b'"request":true' not in v]

    def without_id(value):
        return value[value.index(b'"key"') :]

    assert [without_id(v) for v in got] == [without_id(v) for v in alone]


@pytest.fixture(scope="module")
def mixed():
    """Events with every kind of request between them."""
    rng = np.random.default_rng(8)
    values = click_values(900, seed=7)
    users = [user_of(v) for v in values]
    out = []
    for i, v in enumerate(values):
        out.append(v)
        if rng.random() < 0.4:
            fields = {"k": int(rng.integers(1, 21))} if rng.random() < 0.5 else {}
            if rng.random() < 0.3:
                fields["candidates"] = [CATALOGUE.ids[j] for j in rng.integers(0, CATALOGUE.n, 12)] + [
                    "no such"
                ]
            if rng.random() < 0.3:
                fields["exclude"] = CATALOGUE.ids[: int(rng.integers(0, 90))]
            if rng.random() < 0.5:
                fields["filters"] = {"price": {"min": int(rng.integers(0, 12)) * 10}}
            out.append(asks(users[int(rng.integers(0, i + 1))], **fields))
    return out


def test_any_cut_gives_the_same_bytes(flow, mixed):
    whole = outputs(Engine(flow), mixed, cut=256)
    assert len(whole) == len(mixed)
    for cut in (1, 7):
        assert outputs(Engine(flow), mixed, cut=cut) == whole
    small = Engine(flow, rows_max=8)
    assert outputs(small, mixed, cut=256) == whole


def test_a_reopened_engine_answers_the_same(flow, mixed, tmp_path):
    whole = outputs(Engine(flow), mixed)
    engine = open_engine(flow, tmp_path)
    half = outputs(engine, mixed[:500])
    engine.checkpoint()
    engine.close()
    engine = open_engine(flow, tmp_path)
    assert half + outputs(engine, mixed[500:], 500) == whole
    engine.close()


def test_only_candidates_are_ranked_and_by_their_own_scores(flow):
    """Against the scores in plain numpy: without a head, LM share + log counts + a little popularity."""
    engine = Engine(flow)
    values = click_values(600, seed=9)
    feed(engine, values)
    names = [CATALOGUE.ids[i] for i in (5, 90, 17, 5, 44, 3)] + ["gone", "7777"]
    user = user_of(values[-1])
    answer = feed(engine, [asks(user, candidates=names, k=20)], 600)[0]
    items, z, scores = (a.copy() for a in engine.candidates())
    want = [i for i in dict.fromkeys(CATALOGUE.index(n) for n in names) if i >= 0 and CATALOGUE.available[i]]
    assert items.tolist() == want and answer["unknown_candidates"] == 2
    q = engine.arrays["q"].astype("f8")
    logits = engine.table_arrays["item"][items] @ q + engine.table_arrays["bias"][items]
    share = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(z[:, 0], share, atol=1e-4)
    plain = share + z[:, 1] + 0.01 * z[:, 3]
    order = np.argsort(-plain, kind="stable")
    assert answer["items"] == [CATALOGUE.ids[items[j]] for j in order]
    np.testing.assert_allclose(answer["scores"], plain[order], atol=1e-4)
    assert scores.shape == plain.shape


@pytest.mark.parametrize("tier", [Tier.PRIOR, Tier.RANK, Tier.FULL])
def test_filters_and_exclusions_hold(flow, tier):
    engine = Engine(flow)
    values = click_values(800, seed=10)
    feed(engine, values)
    user = user_of(values[-1])
    for filters, holds in (
        ({"category": ["Cameras"]}, lambda i: i in CAMERAS),
        ({"price": {"min": 50, "max": 120.5}}, lambda i: 50 <= CATALOGUE.price[i] <= np.float32(120.5)),
        (
            {"category": "Cameras", "price": {"max": 200}},
            lambda i: i in CAMERAS and CATALOGUE.price[i] <= 200,
        ),
    ):
        plain = feed(engine, [asks(user, filters=filters, k=20)], engine.position, tier=tier)[0]["items"]
        found = [CATALOGUE.index(i) for i in plain]
        every = [i for i in range(CATALOGUE.n) if holds(i) and CATALOGUE.available[i]]
        assert found and set(found) <= set(every)
        assert len(found) == min(20, len(every))  # few enough to rank one and all
        rest = feed(
            engine, [asks(user, filters=filters, exclude=plain[:3], k=20)], engine.position, tier=tier
        )
        assert not set(rest[0]["items"]) & set(plain[:3])
        listed = feed(
            engine, [asks(user, filters=filters, candidates=CATALOGUE.ids[:50], k=20)], engine.position
        )
        assert {CATALOGUE.index(i) for i in listed[0]["items"]} <= set(every) & set(range(50))


def test_a_wide_filter_answers_as_an_engine_without_the_other_items(model):
    """More items than are ranked one by one: the scan itself leaves the others out."""
    ids = CATALOGUE.ids + [f"more-{i}" for i in range(3000)]
    price = [float(i % 2) for i in range(len(ids))]
    flow = Flow("ask", "clicks", [UserClicks], catalogue=Catalogue(ids, price=price), model=model)
    engine = Engine(flow)
    values = click_values(500, seed=11)
    feed(engine, values)
    user = user_of(values[-1])
    got = feed(engine, [asks(user, filters={"price": [0]})], 500)[0]
    engine.exclude[: len(ids)] = price
    want = feed(engine, [asks(user)], 501)[0]
    assert got["items"] == want["items"] and got["scores"] == want["scores"] and len(got["items"]) == 10
    engine.exclude[:] = 0
    assert feed(engine, [asks(user)], 502)[0]["items"] != got["items"]


def test_more_filters_in_a_batch_than_there_are_masks(model):
    ids = CATALOGUE.ids + [f"more-{i}" for i in range(3000)]
    price = [float(i % 100) for i in range(len(ids))]
    flow = Flow("ask", "clicks", [UserClicks], catalogue=Catalogue(ids, price=price), model=model)
    values = click_values(300, seed=11)
    users = [user_of(v) for v in values]
    values += [asks(users[i], filters={"price": {"min": i}}) for i in range(50)]
    assert outputs(Engine(flow), values, cut=256) == outputs(Engine(flow), values, cut=1)


def test_a_key_without_events_gets_what_is_popular(flow):
    engine = Engine(flow)
    feed(engine, click_values(500, seed=12))
    stranger, stranger_prior = (
        feed(engine, [asks("nobody")], engine.position, tier=t)[0] for t in (Tier.FULL, Tier.PRIOR)
    )
    assert stranger["items"] == stranger_prior["items"] and len(stranger["items"]) == 10
    top = CATALOGUE.index(stranger["items"][0])
    assert engine.counts.fast[top] == engine.counts.fast.max()
    assert feed(Engine(flow), [asks("first of all")])[0]["items"] == []


def test_the_state_of_another_model_is_read_and_not_written(flow, tmp_path):
    other = flow.but(model=random_model(tmp_path / "b.weights", seed=2))
    values = click_values(300, seed=13)
    user = user_of(values[-1])
    engine = open_engine(flow, tmp_path / "state")
    feed(engine, values)
    engine.checkpoint()
    engine.close()
    engine = open_engine(other, tmp_path / "state")
    answer = feed(engine, [asks(user)], 300)[0]
    before = state_of(engine)
    assert feed(engine, [asks(user)], 301)[0]["scores"] == answer["scores"] and state_of(engine) == before
    fresh = Engine(other)  # the same ring, read by that model from the beginning
    feed(fresh, values)
    assert feed(fresh, [asks(user)], 300)[0]["scores"] == answer["scores"]


def test_times(flow):
    engine = Engine(flow)
    values = click_values(300, seed=14)
    newest = max(json.loads(v).get("event_ts_ns", 0) for v in values)
    got = feed(engine, [*values, asks("u"), asks("u", event_ts_ns=5), asks("u", event_ts_s=1_900_000_000)])[
        -3:
    ]
    watermark = int(engine.clock[c.WATERMARK])
    assert [a["event_ts_ns"] for a in got] == [watermark, watermark, 1_900_000_000 * 10**9]
    assert newest in (0, watermark) and engine.clock[c.LATE_TOTAL] == 0


def test_features_only_and_market_flows_answer_too():
    class Seen(FeatureView):
        source = "clicks"
        key = "user_id"
        all = count()

    engine = Engine(Flow("plain", "clicks", [Seen]))
    values = click_values(200, seed=1)
    user = user_of(values[0])
    n = sum(user_of(v) == user for v in values)
    codec = Codec(engine.flow, engine)
    mixed = [*values[:50], asks("nobody"), *values[50:], asks(user)]
    events = codec.decoder.decode(mixed, np.arange(202), np.zeros(202, "i8"), "clicks", 0)
    scored = engine.step(events, Tier.FULL)
    lines = [json.loads(v) for v in codec.encode(scored)["clicks.features"][0]]
    assert lines[-1]["features"] == {"all": n} and lines[-1]["request"]
    assert lines[50]["features"] == {"all": None}
    apart = Engine(engine.flow)
    for i in range(202):
        one = apart.step(events[i : i + 1], Tier.FULL)
        assert one.features.tobytes() == scored.features[i : i + 1].tobytes()
    assert apart.slab.rows.tobytes() == engine.slab.rows.tobytes()

    engine = Engine(Flow("trade", "market", [Book]))
    values = market_values(300)
    name = json.loads(values[-1])["instrument"]
    codec = Codec(engine.flow, engine)
    asked = json.dumps({"instrument": name, "kind": "request"}).encode()
    events = codec.decoder.decode([*values, asked], np.arange(301), np.zeros(301, "i8"), "market", 0)
    before = None
    for at in (0, 256, 300):
        scored = engine.step(events[at : at + 256], Tier.FULL)
        before, after = engine.slab.rows.tobytes() if at == 256 else before, engine.slab.rows.tobytes()
    assert len(scored) == 1 and before == after and events.requests
    assert MARKET.name == "market" and np.isfinite(scored.features).any()

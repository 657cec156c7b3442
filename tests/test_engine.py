"""The engine: any cut into batches, any eviction, any restart give the same bits."""

import numpy as np
import pytest

from features.clicks import ItemClicks, UserClicks
from features.market import Book
from streamai import FeatureView, count
from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.engine import Engine, open_engine
from streamai.errors import DeclarationError, ModelError, StateError, StepError
from streamai.events import EVENT, MARKET, Events, Schema
from streamai.flow import HORIZONS, Counts, Flow
from streamai.kernels import context as c
from streamai.kernels.index import hash128
from streamai.model import weights
from streamai.scored import LATE, SCORED
from tests.made import DATA, ITEMS, clicks, market, random_model


def flow(**changes) -> Flow:
    return Flow("recommend", "clicks", [UserClicks, ItemClicks], catalogue=ITEMS, **changes)


def run(engine: Engine, events: Events, cuts, tier=Tier.FULL, checkpoint_every: int = 5) -> list[bytes]:
    """Result bytes of every event, stepping through the cuts; checkpoints now and then."""
    out, at, steps = [], 0, 0
    while at < len(events):
        size = next(cuts)
        scored = engine.step(events[at : at + size], tier)
        parts = (scored.status, scored.features, scored.items, scored.scores, scored.hidden)
        out += [b"".join(p[i].tobytes() for p in parts) for i in range(len(scored))]
        at, steps = at + len(scored), steps + 1
        if len(scored) == 0 or steps % checkpoint_every == 0:
            engine.checkpoint()
    return out


def sizes(seed: int, most: int = 256):
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(1, most + 1))


def always(n: int):
    while True:
        yield n


@pytest.fixture(scope="module")
def stream() -> Events:
    return clicks(3000, seed=3)


@pytest.fixture(scope="module")
def whole(stream) -> list[bytes]:
    return run(Engine(flow()), stream, always(256))


@pytest.mark.parametrize("cuts", [always(1), always(7), sizes(1)])
def test_any_cut_into_batches_gives_the_same_bits(stream, whole, cuts):
    assert run(Engine(flow()), stream, cuts) == whole


def test_more_keys_than_slots_works_with_capacity_8_and_batches_of_256(stream, whole, tmp_path):
    engine = open_engine(flow(), tmp_path, rows_max=8)
    assert run(engine, stream, always(256)) == whole
    assert engine.slab.evicted > 100


def test_a_reopened_engine_goes_on_from_its_fence(stream, whole, tmp_path):
    rng = np.random.default_rng(5)
    got: list[bytes | None] = [None] * len(stream)
    engine = open_engine(flow(), tmp_path, rows_max=64)
    at = reopened = 0
    while at < len(stream):
        scored = engine.step(stream[at : at + int(rng.integers(1, 100))], Tier.FULL)
        parts = (scored.status, scored.features, scored.items, scored.scores, scored.hidden)
        for i in range(len(scored)):
            got[at + i] = b"".join(p[i].tobytes() for p in parts)
        at += len(scored)
        if len(scored) == 0 or rng.random() < 0.3:
            engine.checkpoint()
        if rng.random() < 0.1:
            engine.close()  # whatever was not checkpointed is gone, as after a kill
            engine = open_engine(flow(), tmp_path, rows_max=64)
            assert engine.position <= at
            at, reopened = engine.position, reopened + 1
    assert reopened > 3
    assert got == whole


def test_every_tier_makes_the_same_state(stream):
    states = []
    for tier in (Tier.SILENT, Tier.PRIOR, Tier.RANK, Tier.FULL):
        engine = Engine(flow())
        run(engine, stream, always(200), tier)
        counts = (engine.counts.ids, engine.counts.w, engine.counts.pop, engine.counts.fast)
        states.append((engine.slab.rows[: engine.slab.used].tobytes(), *(a.tobytes() for a in counts)))
    assert all(s == states[0] for s in states)


def test_a_late_event_changes_no_state_and_an_older_one_enters(stream):
    engine = Engine(flow())
    engine.step(stream[:100], Tier.FULL)
    before = engine.slab.rows.tobytes(), engine.counts.w.tobytes()
    watermark = engine.clock[c.WATERMARK]
    late = _again(stream, 99, watermark - 10_000_000_001)
    scored = engine.step(late, Tier.FULL)
    assert scored.status[0] == LATE and np.isnan(scored.features[0]).all()
    assert (engine.slab.rows.tobytes(), engine.counts.w.tobytes()) == before
    scored = engine.step(_again(stream, 99, watermark - 10_000_000_000), Tier.FULL)
    assert scored.status[0] == SCORED
    assert engine.clock[c.LATE_TOTAL] == 1


def _again(stream: Events, i: int, event_ts_ns: int) -> Events:
    events = Events("clicks", 0, stream.rows[i : i + 1].copy(), stream.columns[i : i + 1], stream.key_bytes)
    events.rows["event_ts_ns"] = event_ts_ns
    return events


def test_items_out_of_stock_or_excluded_are_never_recommended(stream):
    engine = Engine(flow())
    gone = np.flatnonzero(engine.catalogue.available[: engine.catalogue.n] == 0)
    engine.exclude[:50] = 1
    for at in range(0, 1000, 100):
        for tier in (Tier.PRIOR, Tier.RANK, Tier.FULL):
            items = engine.step(stream[at : at + 100], tier).items
            assert not np.isin(items, gone).any()
            assert not ((items >= 0) & (items < 50)).any()


def test_seen_items_are_left_out_when_the_flow_says_so(stream):
    engine = Engine(flow(exclude_seen=True))
    seen: dict[int, set] = {}
    for i in range(600):
        scored = engine.step(stream[i : i + 1], Tier.FULL)
        key = int(stream.rows["hash0"][i])
        seen.setdefault(key, set()).add(int(stream.rows["item"][i]))
        assert not seen[key] & set(scored.items[0].tolist())


def test_an_unknown_item_moves_the_state_and_is_not_recommended(stream):
    engine = Engine(flow())
    event = _again(stream, 0, int(stream.rows["event_ts_ns"][0]))
    event.rows["item"], event.rows["item_hash"] = -1, 77
    scored = engine.step(event, Tier.FULL)
    assert scored.status[0] == SCORED and (scored.items[0] == -1).all()
    assert engine.slab.view("i8")[0, 1] == 1


def test_a_state_of_other_views_is_refused_with_what_to_do(stream, tmp_path):
    engine = open_engine(flow(), tmp_path)
    engine.step(stream[:10], Tier.FULL)
    engine.checkpoint()
    engine.close()
    other = Flow("recommend", "clicks", [UserClicks], catalogue=ITEMS)
    with pytest.raises(StateError, match="remove the folder"):
        open_engine(other, tmp_path)


def test_features_only_market_flow_and_decide():
    events = market(1000)
    flows = Flow("trade", "market", [Book], decide=lambda scored, events: events.columns[:, 0] * 0 + 1)
    engine = Engine(flows)
    scored = engine.step(events[:100], Tier.FULL)
    assert (scored.target == 1).all() and scored.scores.shape == (100, 0)
    a = run(Engine(flows), events, always(256))
    assert run(Engine(flows), events, sizes(2)) == a


def test_a_users_own_scorer_sees_features_of_the_batch():
    def scorer(features, hidden, out):
        out[:, 0] = features[:, 0] * 2

    engine = Engine(Flow("mine", "market", [Book], scorer=scorer))
    scored = engine.step(market(50), Tier.FULL)
    np.testing.assert_array_equal(scored.scores[:, 0], scored.features[:, 0] * 2)


def test_an_exception_halfway_leaves_the_store_at_the_fence(stream, whole, tmp_path):
    def broken(scored, events):
        if events.rows["offset"][-1] >= 500:
            raise RuntimeError("halfway")
        return np.full(len(scored), np.nan)

    engine = open_engine(flow(decide=broken), tmp_path)
    with pytest.raises(RuntimeError):
        run(engine, stream, always(100))
    engine.close()
    engine = open_engine(flow(), tmp_path)
    fence = engine.position
    assert fence <= 500
    assert run(engine, stream[fence:], always(100)) == whole[fence:]


def test_hash_of_a_key_is_what_events_carry(stream):
    h0, h1 = hash128(np.frombuffer(stream.key(0), "u1"), 0, int(stream.rows["key_len"][0]))
    assert (stream.rows["hash0"][0], stream.rows["hash1"][0]) == (h0, h1)
    assert stream.rows.dtype == EVENT


def test_items_that_the_model_was_not_trained_on_are_unknown_tokens_and_never_scanned(stream, tmp_path):
    model = weights.read(random_model(tmp_path / "whole", seed=1))
    half = model.vocabulary[:250]
    arrays = {n: a[:250] if n in ("item", "bias") else a for n, a in model.arrays.items()}
    header = {k: v for k, v in model.header.items() if k in ("kind", "d", "layers", "mlp", "side")}
    weights.write(tmp_path / "half", header | {"vocabulary": half}, arrays)
    engine = Engine(flow(model=tmp_path / "half"))
    tables = engine.table_arrays
    i = 300
    row = Catalogue.token_hash(engine.catalogue.ids[i]) & 63
    np.testing.assert_array_equal(tables["item"][i], tables["unknown"][row])
    assert tables["scannable"][:250].sum() > 200 and not tables["scannable"][250:].any()
    engine.step(stream[:1], Tier.FULL)
    found, z, _ = engine.candidates()
    assert (z[found >= 250, 0] == 0).all() and (found < 250).sum() == 64


def market_model(path, horizons, **header):
    """The demo's model with fewer horizons or another header."""
    model = weights.read(DATA / "models" / "trade.weights")
    n = len(horizons)
    keep = ("kind", "d", "layers", "mlp", "side", "heads", "plan", "horizons", "int8", "state")
    header = {k: model.header[k] for k in keep if k in model.header} | {"horizons": list(horizons), **header}
    cut = {"sig_W2": np.s_[:, : 3 * n], "sig_b2": np.s_[: 3 * n], "sig_temp": np.s_[:n]}
    weights.write(path, header, {k: a[cut[k]] if k in cut else a for k, a in model.arrays.items()})
    return path


def test_a_model_of_other_horizons_features_or_columns_is_refused(tmp_path):
    two = market_model(tmp_path / "two", HORIZONS[:2])
    trade = Flow("trade", "market", [Book], model=two, horizons=HORIZONS[:2])
    scored = Engine(trade).step(market(50), Tier.FULL)
    assert scored.scores.shape == (50, 6) and np.allclose(scored.scores[:, :3].sum(1), 1, atol=1e-5)
    with pytest.raises(ModelError, match="forecasts .'100ms', '1s'"):
        Engine(trade.but(horizons=HORIZONS))
    with pytest.raises(ModelError, match="features of plan"):
        Engine(trade.but(views=(Renamed,)))
    small = Schema("small", "instrument", None, MARKET.kinds, MARKET.columns[:2], default_kind="quote")
    with pytest.raises(ModelError, match="columns"):
        Engine(Flow("trade", "market", schema=small, model=market_model(tmp_path / "all", HORIZONS, plan="")))


class Renamed(FeatureView):
    """As many features as Book."""

    source, key = "market", "instrument"
    locals().update({f"n{i}": count(last=i + 1) for i in range(len(Book.features))})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"catalogue": ITEMS},
        {"catalogue": ITEMS, "model": None},  # a random one
        {"catalogue": ITEMS, "model": DATA / "models" / "recommend.weights"},  # its head knows other features
        {"model": DATA / "models" / "recommend.weights"},
    ],
)
def test_a_scorer_beside_catalogue_and_model_writes_its_own_width_only(stream, changes, tmp_path):
    """Ten recommendations must not be written where one score has its place."""

    def scorer(features, hidden, out):
        out[:, 0] = features[:, 0] + hidden[:, :2].sum(1)

    if changes.get("model", 0) is None:
        changes = changes | {"model": random_model(tmp_path / "model")}
    mine = Flow("mine", "clicks", [UserClicks], scorer=scorer, **changes)
    engine, whole = Engine(mine), []
    for at in range(0, 300, 100):
        scored = engine.step(stream[at : at + 100], Tier.FULL)
        assert (scored.tier == Tier.FULL).all() and scored.scores.shape == (100, 1)
        wanted = scored.features[:, 0] + scored.hidden[:, :2].sum(1)
        np.testing.assert_array_equal(scored.scores[:, 0], wanted)
        whole.append(scored.scores.copy())
    again = Engine(mine)
    singles = [again.step(stream[i : i + 1], Tier.FULL).scores.copy() for i in range(300)]
    np.testing.assert_array_equal(np.concatenate(singles), np.concatenate(whole))


def test_a_changed_catalogue_keeps_what_an_index_means(stream, tmp_path):
    """Items in another order, one gone, one new: the state goes on, and says them by their ids."""
    engine = open_engine(flow(), tmp_path)
    run(engine, stream[:500], always(100))
    engine.checkpoint()
    ids = engine.catalogue.ids
    before = engine.step(stream[500:501], Tier.FULL).items[0].copy()
    engine.close()
    gone = ids[before[0]]
    changed = Catalogue(["brand new", *(i for i in reversed(ids) if i != gone)])
    after = open_engine(flow().but(catalogue=changed), tmp_path)
    assert after.position == 500 and after.catalogue.ids[: len(ids)] == ids
    assert after.catalogue.ids[len(ids)] == "brand new"
    items = after.step(stream[500:501], Tier.FULL).items[0]
    assert before[0] not in items and set(before[1:5]) <= set(items)


@pytest.mark.parametrize(
    "changes", [{"window": 21}, {"window": 0}, {"neighbours": 0}, {"tau_days": 0.0}, {"scored": 0}]
)
def test_counts_that_do_not_fit_the_log_are_refused(changes):
    with pytest.raises(DeclarationError, match="counts"):
        Counts(**changes)


@pytest.mark.parametrize("shape", [(3,), (50, 2), (50, 1)])
def test_targets_of_another_shape_are_refused_in_words(stream, shape):
    wrong = Flow("mine", "clicks", [UserClicks], decide=lambda scored, events: np.zeros(shape))
    with pytest.raises(StepError, match=r"decide of flow 'mine' gave an array of shape .* for 50 events"):
        Engine(wrong).step(stream[:50], Tier.FULL)


def test_a_scorer_that_leaves_an_event_out_does_not_find_the_last_step_s_score(stream):
    def scorer(features, hidden, out):
        seen = features[:, 0] > 1
        out[seen, 0] = features[seen, 0]

    mine = Flow("mine", "clicks", [UserClicks], scorer=scorer)
    assert run(Engine(mine), stream[:300], always(7)) == run(Engine(mine), stream[:300], always(100))


def test_a_step_without_events_does_not_reach_the_users_code(stream):
    mine = Flow(
        "mine", "clicks", [UserClicks], scorer=lambda f, h, out: out[0], decide=lambda s, e: 1 / len(s)
    )
    assert len(Engine(mine).step(stream[:0], Tier.FULL)) == 0


def test_a_scorer_beside_a_market_model():
    def scorer(features, hidden, out):
        out[:] = hidden[:, :2]

    model = DATA / "models" / "trade.weights"
    mine = Flow("mine", "market", [Book], model=model, scorer=scorer, scorer_width=2)
    scored = Engine(mine).step(market(100), Tier.FULL)
    assert scored.scores.shape == (100, 2) and scored.hidden.any()
    np.testing.assert_array_equal(scored.scores, scored.hidden[:, :2])

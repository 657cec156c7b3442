"""The ranking head's inputs by their definitions, in plain numpy beside the engine's."""

import numpy as np
import pytest

from features.clicks import ItemClicks, UserClicks
from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.engine import Engine, open_engine
from streamai.flow import Flow
from streamai.kernels.inputs import NAMES
from streamai.model import weights
from tests.made import ITEMS, clicks, random_model

N = 900


@pytest.fixture(scope="module")
def events():
    return clicks(N, seed=11)


def with_head(path, flow, old: bool, seed: int = 1):
    """The random model of `path` with a random head of 8 or 16 inputs, in place."""
    r = np.random.default_rng(seed)
    file = weights.read(path)
    n, h, d = (8 if old else 16), 16, file.header["d"]
    features = len(flow.views[0].features) + len(flow.views[1].features)

    def made(*shape):
        return r.standard_normal(shape).astype("f4")

    head = {
        "head_mean": made(n), "head_inv": np.abs(made(n)), "head_w": made(n), "head_b": made(1),
        "head_Wz": made(n, h), "head_W2": made(h), "head_bu": made(h),
        "head_Wu": made(d + features + (0 if old else 3), h) / 8,
        "feat_mean": made(features), "feat_inv": np.full(features, 0.1, "f4"),
    }  # fmt: skip
    if not old:
        head["head_items"] = made(len(flow.views[1].features))
        head["text"] = made(len(file.vocabulary), 32)
    header = {k: v for k, v in file.header.items() if k != "arrays"} | {"calibrated": not old}
    weights.write(path, header, file.arrays | head)
    return path


def flow_of(path=None, **changes) -> Flow:
    return Flow(
        "recommend", "clicks", [UserClicks, ItemClicks], catalogue=ITEMS, model=path, ring=16, **changes
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = random_model(tmp_path_factory.mktemp("inputs") / "m.weights")
    return with_head(path, flow_of(), old=False)


def gap_seconds(dt_ns: int) -> float:
    """The middle of a gap's bucket, as the ring keeps it."""
    if dt_ns <= 0:
        return 0.0
    b = min(63, 1 + int(np.floor(2 * np.log2(1 + dt_ns / 1e6) + 1e-12)))
    return 1e-3 * 2.0 ** ((b - 1) // 2) * (1.19 if (b - 1) % 2 == 0 else 1.68)


class Key:
    """What a key's ring holds, newest first: items and gaps."""

    def __init__(self) -> None:
        self.items, self.gaps, self.newest = [], [], None

    def add(self, item: int, t: int, ring: int = 16) -> None:
        gap = 0.0 if self.newest is None else gap_seconds(t - self.newest)
        self.items, self.gaps = [item, *self.items][:ring], [gap, *self.gaps][:ring]
        self.newest = t if self.newest is None else max(t, self.newest)

    def of(self, item: int) -> dict[str, float]:
        """The inputs that the ring gives for one item."""
        ago = np.concatenate([[0.0], np.cumsum(self.gaps)])
        at = [k for k, i in enumerate(self.items) if i == item]
        if not at:
            return dict.fromkeys(
                ("in_ring", "log_age_events", "log_span", "log_own", "log_own_recent", "log_since_own"), 0.0
            )
        return {
            "in_ring": 1.0, "log_age_events": np.log1p(at[0] + 1), "log_span": np.log1p(ago[at[-1]]),
            "log_own": np.log1p(len(at)), "log_own_recent": np.log1p(sum((k + 1) ** -0.5 for k in at)),
            "log_since_own": np.log1p(ago[at[0]]),
        }  # fmt: skip


def back_counts(state, item: int, newest: list[int], t: int, tau_ns: float) -> float:
    """Score of the links from `item` to the four newest items of the ring."""
    left = np.exp(-(t - int(state["clock"][1])) / tau_ns)
    total = 0.0
    for k, i in enumerate(newest[:4]):
        for s in np.flatnonzero(state["ids"][item] == i + 1) if i >= 0 else ():
            total += state["w"][item, s] * left / ((state["pop"][i] * left + 20) * (k + 1))
    return total * float(state["norm"][item])


def test_every_input_by_its_definition(events, model):
    engine = Engine(flow_of(model))
    a, state, tables = engine.arrays, engine.state_arrays, engine.table_arrays
    keys, views, views_seen = {}, {}, 0
    index = {name: k for k, name in enumerate(NAMES)}
    text = tables["text"].astype("f8")
    assert np.allclose(np.linalg.norm(text[: engine.catalogue.n], axis=1), 1, atol=1e-5)
    key_features = len(engine.plan.names)
    for n in range(N):
        scored = engine.step(events[n : n + 1], Tier.FULL)
        row = events.rows[n]
        t, item = int(row["event_ts_ns"]), int(row["item"])
        key = keys.setdefault(events.key(n), Key())
        token = item if item >= 0 else -1 - (int(row["item_hash"]) & 63)
        key.add(token, t)
        if item >= 0:
            views[item] = scored.features[0, key_features:].copy()
        if n < 300 or n % 5:
            continue
        cand, z, _ = engine.candidates()
        known = tables["known"][cand] != 0
        logits = (tables["item"][cand].astype("f8") @ scored.hidden[0]) + tables["bias"][cand]
        share = logits - np.log(np.exp(logits[known]).sum())
        share[~known] = share[known].mean()
        assert np.allclose(z[:, 0], share, atol=1e-3)
        mean = sum((0.8**k * text[i] for k, i in enumerate(key.items) if i >= 0), np.zeros(32))
        mean /= max(np.linalg.norm(mean), 1e-12)
        for j, i in enumerate(cand.tolist()):
            wanted = key.of(i)
            wanted["lm_knows"] = float(known[j])
            wanted["text"] = float(text[i] @ mean)
            wanted["log_back_counts"] = np.log1p(1e3 * back_counts(state, i, key.items, t, 365 * 86_400e9))
            f = views.get(i)
            wanted["item_views"] = 0.0
            if f is not None:
                scaled = (f - tables["feat_mean"][key_features:]) * tables["feat_inv"][key_features:]
                wanted["item_views"] = float(np.where(np.isfinite(scaled), scaled, 0) @ tables["head_items"])
                views_seen += 1
            for name, value in wanted.items():
                assert z[j, index[name]] == pytest.approx(value, rel=2e-3, abs=2e-3), (n, i, name)
        items = key.items
        again = sum(i >= 0 and i in items[:k] for k, i in enumerate(items))
        newest_again = float(items[0] >= 0 and items[0] in items[1:])
        assert np.allclose(a["ring"], [again / len(items), np.log1p(len(items)), newest_again], atol=1e-5)
    assert views_seen > 1000


def test_scores_are_probabilities_and_the_items_of_the_ring_are_candidates(events, model):
    engine = Engine(flow_of(model))
    keys = {}
    for n in range(N):
        scored = engine.step(events[n : n + 1], Tier.FULL)
        key = keys.setdefault(events.key(n), Key())
        key.add(int(events.rows["item"][n]), int(events.rows["event_ts_ns"][n]))
        cand, _, score = engine.candidates()
        e = np.exp(score.astype("f8") - max(score.max(), 0))
        p = np.sort(e / (e.sum() + np.exp(-max(float(score.max()), 0))))[::-1]
        assert np.allclose(scored.scores[0], p[: scored.scores.shape[1]], rtol=1e-4, atol=1e-7)
        own = {i for i in key.items if i >= 0 and engine.table_arrays["available"][i]}
        assert own <= set(cand.tolist())


def test_a_head_of_eight_inputs_reads_what_it_was_trained_on(events, tmp_path):
    path = with_head(random_model(tmp_path / "old.weights"), flow_of(), old=True)
    engine = Engine(flow_of(path))
    file = weights.read(path).arrays
    for n in range(200):
        scored = engine.step(events[n : n + 1], Tier.FULL)
    cand, z, score = engine.candidates()
    tables = engine.table_arrays
    logits = tables["item"][cand].astype("f8") @ scored.hidden[0] + tables["bias"][cand]
    assert np.allclose(z[:, 0], np.where(tables["known"][cand] != 0, logits, 0), atol=1e-3)
    zn = (z[:, :8] - file["head_mean"]) * file["head_inv"]
    f = (scored.features[0] - file["feat_mean"]) * file["feat_inv"]
    x = np.concatenate([scored.hidden[0], np.where(np.isfinite(f), f, 0)])
    wanted = (
        zn @ file["head_w"]
        + file["head_b"]
        + np.maximum(zn @ file["head_Wz"] + file["head_bu"] + x @ file["head_Wu"], 0) @ file["head_W2"]
    )
    assert np.allclose(score, wanted, rtol=1e-3, atol=1e-3)


def test_item_features_come_back_after_a_restart(events, model, tmp_path):
    def outputs(engine, first, last):
        return [
            (s.items.tobytes(), s.scores.tobytes())
            for s in (engine.step(events[n : n + 1], Tier.FULL) for n in range(first, last))
        ]

    whole = outputs(Engine(flow_of(model)), 0, N)
    engine = open_engine(flow_of(model), tmp_path)
    first = outputs(engine, 0, 500)
    engine.checkpoint()
    engine.close()
    again = open_engine(flow_of(model), tmp_path)
    assert np.isfinite(again.item_features(np.arange(20))).any()
    assert first + outputs(again, 500, N) == whole
    again.close()


def test_items_without_text_have_none(events, model):
    catalogue = Catalogue.load(ITEMS).extend([])
    engine = Engine(flow_of(model))
    assert engine.table_arrays["text"].shape == (len(catalogue.available), 32)
    assert not engine.table_arrays["text"][engine.catalogue.n :].any()

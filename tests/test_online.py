"""Online learning of the head: the same bits for any cut, after a restart, in every tier; and the maths."""

import numpy as np
import pytest

from streamai.deadline import Tier
from streamai.engine import Engine, open_engine
from streamai.errors import DeclarationError, ModelError
from streamai.flow import Online
from streamai.kernels import context as c
from streamai.kernels import online as kernel
from streamai.model import weights
from tests.made import clicks, random_model
from tests.test_inputs import flow_of, with_head

N = 700
RATES = {"rate": 0.01, "bias_rate": 0.1}
LEARNT = ("learnt_w", "learnt_bias", "served_w", "served_bias")


@pytest.fixture(scope="module")
def events():
    return clicks(N, seed=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return with_head(random_model(tmp_path_factory.mktemp("online") / "m.weights"), flow_of(), old=False)


def outputs(engine: Engine, events, cut: int, tier=Tier.FULL) -> list[bytes]:
    """Items and scores of every event, stepping `cut` at a time, with a checkpoint now and then."""
    out, at = [], 0
    while at < len(events):
        scored = engine.step(events[at : at + cut], tier)
        out += [scored.items[i].tobytes() + scored.scores[i].tobytes() for i in range(len(scored))]
        at += len(scored)
        if len(scored) == 0 or at % 5 == 0:
            engine.checkpoint()
    return out


def learnt(engine: Engine) -> list[bytes]:
    return [engine.state_arrays[name].tobytes() for name in LEARNT]


@pytest.mark.parametrize("refresh", ["0s", "1m"])
def test_cuts_restarts_and_tiers_give_the_same_bits(events, model, tmp_path, refresh):
    flow = flow_of(model, online=Online(**RATES, refresh=refresh))
    one = Engine(flow)
    whole = outputs(one, events, 1)
    assert np.abs(one.state_arrays["learnt_w"]).min() > 0
    if refresh != "0s":
        assert one.clock[c.REFRESHED] > 0 and learnt(one)[0] != learnt(one)[2] != bytes(68)
    for cut in (7, 256):
        engine = Engine(flow)
        assert outputs(engine, events, cut) == whole and learnt(engine) == learnt(one)
    silent = Engine(flow)
    outputs(silent, events, 64, Tier.SILENT)
    assert learnt(silent) == learnt(one)
    first = open_engine(flow, tmp_path)
    begun = outputs(first, events[:300], 50)
    first.checkpoint()
    first.close()
    again = open_engine(flow, tmp_path)
    assert again.position == 300 and again.clock[c.REFRESHED] == first.clock[c.REFRESHED]
    assert begun + outputs(again, events[300:], 50) == whole and learnt(again) == learnt(one)
    again.close()


def test_what_is_learnt_is_gradient_descent_on_the_list_before_the_event(events, model):
    """The list an online engine learns from is that of a frozen one, asked after the key's event before.

    Every event is fed to both; counts move between the two moments, so inputs are taken from the learner and
    what they must be without counts is compared.
    """
    frozen, online = Engine(flow_of(model)), Engine(flow_of(model, online=Online(**RATES)))
    file = weights.read(model).arrays
    w, bias = np.zeros(17), np.zeros(len(online.state_arrays["learnt_bias"]))
    user, newest, compared = {}, {}, 0
    for n in range(N):
        key, t = events.key(n), int(events.rows["event_ts_ns"][n])
        frozen.step(events[n : n + 1], Tier.FULL)
        online.step(events[n : n + 1], Tier.SILENT)
        if key in user and t > newest[key]:
            a = online.arrays
            # the learner's scratch is what it learnt from: shares less what came, inputs, candidates
            m = int(a["found"][1])
            cand, z = a["cand"][:m], a["z"][:m].astype("f8")
            zn = (z - file["head_mean"]) * file["head_inv"]
            score = zn @ (file["head_w"] + w[:16]) + file["head_b"] + w[16] + bias[cand]
            score += np.maximum(zn @ file["head_Wz"] + user[key], 0) @ file["head_W2"]
            e = np.exp(score - max(score.max(), 0))
            p = e / (e.sum() + np.exp(-max(score.max(), 0)))
            g = p - (cand == events.rows["item"][n])
            w -= RATES["rate"] * np.concatenate([g @ zn, [g.sum()]])
            bias[cand] -= RATES["bias_rate"] * g
            compared += 1
            got = online.state_arrays["learnt_w"]
            assert np.allclose(got, w, rtol=2e-3, atol=2e-4), n
            w = got.astype("f8").copy()
            assert np.allclose(online.state_arrays["learnt_bias"], bias, atol=1e-3)
            bias = online.state_arrays["learnt_bias"].astype("f8").copy()
        # the shared part of the list that was served after this event
        user[key] = frozen.arrays["user"].astype("f8").copy()
        newest[key] = max(t, newest.get(key, t))
    assert compared > 300


def test_one_step_lowers_the_loss_of_what_came():
    r = np.random.default_rng(0)
    z, mean, inv = r.standard_normal((30, 16)).astype("f4"), np.zeros(16, "f4"), np.ones(16, "f4")
    cand, w, bias = np.arange(30, dtype="i4"), np.zeros(17, "f4"), np.zeros(30, "f4")

    def loss(item: int) -> float:
        s = z @ w[:16] + w[16] + bias
        return float(np.log(1 + np.exp(s).sum()) - (s[item] if item >= 0 else 0))

    for item in (4, -1, 29):
        before = loss(item)
        scores = (z @ w[:16] + w[16] + bias).astype("f4")
        rates = np.float32(0.01), np.float32(0.1)
        kernel.descend(z, mean, inv, scores, cand, 30, item, *rates, np.zeros(16, "f4"), w, bias)
        assert loss(item) < before


def test_events_that_the_model_was_trained_on_teach_nothing(events, model, tmp_path):
    file = weights.read(model)
    cut = int(events.rows["event_ts_ns"][400])
    header = {k: v for k, v in file.header.items() if k != "arrays"} | {"metrics": {"fitted_until_ns": cut}}
    path = tmp_path / "later.weights"
    weights.write(path, header, dict(file.arrays))
    engine = Engine(flow_of(path, online=Online(**RATES)))
    outputs(engine, events[:400], 100)
    assert not engine.state_arrays["learnt_w"].any()
    outputs(engine, events[400:], 100)
    assert engine.state_arrays["learnt_w"].any()


def test_rates_of_zero_leave_everything_as_it_is(events, model):
    still = Engine(flow_of(model, online=Online(0.0, 0.0)))
    assert outputs(still, events, 100) == outputs(Engine(flow_of(model)), events, 100)


def test_settings_that_cannot_be_are_refused(model, tmp_path):
    with pytest.raises(DeclarationError, match="refresh|duration"):
        Online(refresh="soon")
    with pytest.raises(DeclarationError, match="negative"):
        Online(rate=-1)
    old = with_head(random_model(tmp_path / "old.weights"), flow_of(), old=True)
    for path in (old, None, random_model(tmp_path / "bare.weights")):
        with pytest.raises(ModelError, match="online"):
            Engine(flow_of(path, online=Online()))

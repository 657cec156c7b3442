"""Training: sequences and splits, the loss, the recurrence, agreement of torch and kernel, heads, labels."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from streamai.catalogue import hash_id
from streamai.errors import InputError, ModelError
from streamai.kernels import softmax
from streamai.kernels.lm import gap_bucket
from streamai.kernels.tokens import MARKET_TOKENS
from streamai.model import weights
from streamai.train import data
from streamai.train.data import sequences, vocabulary
from streamai.train.export import export
from streamai.train.fit import Recipe, fit, half_precision, rate_at
from streamai.train.loss import cross_entropy
from streamai.train.market import DOWN, FLAT, NO_LABEL, UP, Horizon, labels, market_sequences, mids
from streamai.train.model import EventLM, Shape, rms
from streamai.train.ranking import leave_one_out
from streamai.train.recurrence import recurrence
from streamai.train.signal import fit_signal, measure, temperature

QUIET = Console(quiet=True)
S = 1_000_000_000
ARRAYS = ("token", "kind", "gap", "side", "row")


def made(users=40, items=20, seed=0, length=(5, 40)):
    """Clicks in which item i is mostly followed by item i + 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(users):
        item, t = int(rng.integers(items)), int(rng.integers(1000)) * S
        for _ in range(int(rng.integers(*length))):
            rows.append((f"u{u}", f"i{item}", int(rng.integers(1, 5)), t))
            item = (item + 1) % items if rng.random() < 0.9 else int(rng.integers(items))
            t += int(rng.integers(0, 5000)) * 1_000_000
    rows = [rows[i] for i in np.argsort([r[3] for r in rows], kind="stable")]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "kind", "event_ts_ns"], orient="row")


def without_last(seq, n):
    """Sequences without each key's last n events (every key has more)."""
    keep = np.arange(seq.events) < np.repeat(seq.start[1:] - n, seq.lengths())
    start = np.arange(len(seq) + 1) * -n + seq.start
    return replace(seq, start=start, **{a: getattr(seq, a)[keep] for a in ARRAYS})


@pytest.fixture(scope="module")
def small():
    """A table, its vocabulary without two items, sequences, and a model trained for a moment."""
    table = made()
    vocab = vocabulary(table["item_id"])[:18]
    seq = sequences(table, vocab)
    torch.manual_seed(0)
    model = EventLM(Shape(len(vocab), 16, 2))
    fit(model, without_last(seq, 2), Recipe(epochs=8, rate=5e-3, precision="f32"), console=QUIET)
    return table, vocab, seq, model


def test_sequences_keep_arrival_order_and_rows(small):
    table, vocab, seq, _ = small
    for k, user in enumerate(seq.keys[:10]):
        mine = table.with_row_index("at").filter(pl.col("user_id") == user)
        a, z = seq.start[k], seq.start[k + 1]
        assert mine["at"].to_list() == seq.row[a:z].tolist()
        assert mine["kind"].to_list() == seq.kind[a:z].tolist()
        newest = None
        for item, ts, token, gap in zip(mine["item_id"], mine["event_ts_ns"], seq.token[a:z], seq.gap[a:z]):
            known = item in vocab
            assert token == (
                vocab.index(item) if known else 18 + (((hash_id(item)[0] & 0xFFFFFFFF) | 1) & 63)
            )
            assert gap == (0 if newest is None else gap_bucket(ts - newest))
            newest = ts if newest is None else max(ts, newest)


def test_gap_runs_from_the_newest_event():
    table = pl.DataFrame(
        {"user_id": ["u"] * 4, "item_id": ["a"] * 4, "event_ts_ns": [0, 10 * S, 5 * S, 11 * S]}
    )
    gap = sequences(table, ["a"]).gap
    assert gap.tolist() == [0, gap_bucket(10 * S), 0, gap_bucket(S)]
    assert not sequences(table, ["a"], time=False).gap.any()


def test_vocabulary_is_by_frequency_then_id():
    assert vocabulary(pl.Series("item_id", ["b", "a", "c", "b", None, "a"])) == ["a", "b", "c"]
    assert vocabulary(pl.Series("item_id", ["b", "a", "b"]), least=2) == ["b"]


def test_missing_column_says_what_to_do():
    with pytest.raises(InputError, match="--map"):
        sequences(pl.DataFrame({"user": ["a"]}), [])


@given(st.integers(0, 10**6), st.integers(2, 30), st.booleans())
@settings(max_examples=30, deadline=None)
def test_windows_stay_inside_their_key(seed, window, cover):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 90, 7)
    start = np.concatenate([[0], np.cumsum(lengths)])
    n = int(start[-1])
    seq = data.Sequences(
        start, *(np.zeros(n, np.int32),) * 3, np.zeros((n, 0), np.float32), np.arange(n), list("abcdefg")
    )
    first, take = data.windows(seq, window, cover, rng)
    key = np.searchsorted(start, first, side="right") - 1
    assert (take >= 2).all() and (take <= window).all() and (first + take <= start[key + 1]).all()
    if cover:  # all but lone events
        assert take.sum() >= lengths[lengths >= 2].sum() - 2 * len(first) - 2
    steps = data.steps_of(seq, 4, window, cover)
    assert -(-len(first) // 4) <= steps


def test_batch_targets_are_the_next_known_tokens(small):
    _, vocab, seq, _ = small
    first, take = data.windows(seq, 10, True, np.random.default_rng(1))
    b = data.batch(seq, first[:6], take[:6], len(vocab))
    T = b.token.shape[1]
    flat = b.token.reshape(-1)
    assert len(b.target) and (b.target < len(vocab)).all()
    assert (flat[b.at + 1] == b.target).all() and ((b.at + 1) // T == b.at // T).all()
    expected = sum(int((b.token[i, 1:n] < len(vocab)).sum()) for i, n in enumerate(b.length))
    assert len(b.target) == expected


def test_chunked_loss_equals_torch():
    torch.manual_seed(1)
    h, e, c = (torch.randn(n, requires_grad=True) for n in ((37, 8), (11, 8), (11,)))
    t = torch.randint(0, 11, (37,))
    ours = cross_entropy(h, e, c, t, 10)
    grads = torch.autograd.grad(3 * ours, (h, e, c))
    theirs = torch.nn.functional.cross_entropy(h @ e.t() + c, t)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(grads, torch.autograd.grad(3 * theirs, (h, e, c))):
        torch.testing.assert_close(a, b)


def test_half_precision_loss_is_near_the_exact_one():
    torch.manual_seed(3)
    h, e, c = (torch.randn(n, requires_grad=True) for n in ((70, 16), (37, 16), (37,)))
    t = torch.randint(0, 37, (70,))
    ours = cross_entropy(h, e, c, t, 32, half=True)
    exact = cross_entropy(h, e, c, t, 32)
    assert ours.item() == pytest.approx(exact.item(), rel=2e-3)
    for a, b in zip(torch.autograd.grad(ours, (h, e, c)), torch.autograd.grad(exact, (h, e, c))):
        assert (a - b).norm() < 0.01 * b.norm()
    # where bfloat16 holds the numbers exactly, so is the loss: what is rounded is the inputs, not the sums
    h, e = (torch.randint(-4, 5, n).float() for n in ((5, 4), (19, 4)))
    c, t = torch.zeros(19), torch.arange(5)
    torch.testing.assert_close(cross_entropy(h, e, c, t, half=True), cross_entropy(h, e, c, t))


def test_bfloat16_is_rounded_as_torch_rounds():
    x = torch.randn(4000) * 10.0 ** torch.randint(-30, 30, (4000,))
    x = torch.cat([x, torch.tensor([0.0, 1.00390625, 1.01171875])])  # the last two lie halfway
    ours = np.array([softmax._halved(v) for v in x.numpy()], np.uint16)
    assert (ours == x.bfloat16().view(torch.uint16).numpy()).all()
    assert softmax._widened(ours[7]) == x.bfloat16().float()[7]


def test_half_precision_training_learns(small):
    _, vocab, seq, model = small
    torch.manual_seed(0)
    half = EventLM(Shape(len(vocab), 16, 2))
    records = fit(half, without_last(seq, 2), Recipe(epochs=8, rate=5e-3, precision="bf16"), console=QUIET)
    assert half.half and records[-1]["loss"] < 0.75 * records[0]["loss"]
    assert leave_one_out(half, seq, 1, seen=True)["ndcg@10"] > 0.5
    assert not half_precision("f32")
    with pytest.raises(ModelError, match="f16"):
        half_precision("f16")


def test_recurrence_equals_a_loop():
    torch.manual_seed(2)
    a = torch.rand(3, 9, 4, requires_grad=True)
    b = torch.randn(3, 9, 4, requires_grad=True)
    h, out = torch.zeros(3, 4), []
    for t in range(9):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    slow, fast = torch.stack(out, 1), recurrence(a, b)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(slow)
    for x, y in zip(
        torch.autograd.grad((fast * weight).sum(), (a, b)), torch.autograd.grad((slow * weight).sum(), (a, b))
    ):
        torch.testing.assert_close(x, y)


def test_rate_warms_up_and_ends_low():
    rates = [rate_at(s, 1000, 100) for s in range(1000)]
    assert rates[0] == 0.01 and max(rates) == 1.0 and rates[-1] < 0.011 and np.argmax(rates) in (99, 100)


def test_training_learns_and_repeats(small):
    table, vocab, seq, model = small
    torch.manual_seed(0)
    again = EventLM(Shape(len(vocab), 16, 2))
    records = fit(again, without_last(seq, 2), Recipe(epochs=8, rate=5e-3, precision="f32"), console=QUIET)
    assert records[-1]["loss"] < 0.75 * records[0]["loss"]
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a, b)
    # with 18 known items chance has NDCG@10 below 0.3
    assert leave_one_out(model, seq, 1, seen=True)["ndcg@10"] > 0.5


def test_nothing_to_train_on_is_an_error():
    table = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"]})
    with pytest.raises(ModelError, match="nothing to train on"):
        fit(EventLM(Shape(2, 16)), sequences(table, ["x", "y"]), Recipe(epochs=1), console=QUIET)


def test_leave_one_out_counts_ties_against():
    """A model of zeros scores all items alike: the target is last."""
    table = made(users=5)
    vocab = vocabulary(table["item_id"])
    model = EventLM(Shape(len(vocab), 16))
    with torch.no_grad():
        model.final_gain.zero_()
    assert leave_one_out(model, sequences(table, vocab), 1, seen=True)["hr@10"] == 0


def test_initial_decays_span_the_time_constants():
    block = EventLM(Shape(4, 64)).blocks[0]
    tau = (-1 / torch.log(torch.exp(-block.lam() * 0.5))).detach().numpy()
    assert tau.min() == pytest.approx(1.5, rel=1e-3) and tau.max() == pytest.approx(100, rel=1e-3)
    assert rms(torch.full((3, 8), 5.0)).allclose(torch.ones(3, 8))


def test_mids_are_filled_forward_within_a_key():
    bid = np.array([np.nan, 10, np.nan, np.nan, 20.0])
    ask = np.array([11.0, 12, 13, np.nan, 22.0])
    np.testing.assert_array_equal(mids(bid, ask, np.array([0, 3, 5])), [np.nan, 11, 11.5, np.nan, 21])


def slow_labels(ts, mid, horizon):
    out = []
    for i in range(len(mid)):
        now = max(ts[: i + 1])
        if horizon.events:
            j = i + horizon.events if i + horizon.events < len(mid) else None
        else:
            seen = [max(ts[: j + 1]) for j in range(len(mid))]
            j = (
                max(j for j in range(len(mid)) if seen[j] <= now + horizon.ns)
                if now + horizon.ns <= seen[-1]
                else None
            )
        followed = i + 1 < len(ts) and ts[i + 1] == ts[i]
        out.append(NO_LABEL if j is None or followed else 1 + int(np.sign(mid[j] - mid[i])))
    return out


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_labels_equal_plain_python(seed):
    rng = np.random.default_rng(seed)
    start = np.array([0, 17, 40])
    ts = np.concatenate([np.cumsum(rng.integers(-1, 4, n)) for n in (17, 23)])  # ties and disorder
    mid = rng.integers(0, 3, 40).astype(float)
    horizons = (Horizon("3ns", ns=3), Horizon("4ev", events=4))
    label, end = labels(ts, mid, start, horizons)
    for a, z in ((0, 17), (17, 40)):
        for h, horizon in enumerate(horizons):
            assert label[a:z, h].tolist() == slow_labels(ts[a:z], mid[a:z], horizon)
            assert (end[a:z, h] < z).all() and (end[a:z, h] >= np.arange(a, z)).all()


def test_market_lm_agrees_with_the_kernel(tmp_path):
    rng = np.random.default_rng(4)
    n = 600
    bid = 100 + 0.01 * np.cumsum(rng.integers(-1, 2, n))
    table = pl.DataFrame({
        "instrument": rng.choice(["A", "B"], n), "kind": rng.integers(1, 4, n),
        "event_ts_ns": np.arange(n) * 7_000_000,
        "bid": bid, "ask": bid + 0.02, "bid_size": rng.integers(1, 9, n), "ask_size": rng.integers(1, 9, n),
        "price": np.where(rng.random(n) < 0.5, bid, np.nan), "size": rng.integers(1, 9, n),
    })  # fmt: skip
    seq, mid = market_sequences(table)
    assert mid.shape == (n,) and np.isfinite(mid).all() and seq.side.shape == (n, 8)
    torch.manual_seed(0)
    model = EventLM(Shape(MARKET_TOKENS, 16, 1, side=8))
    fit(model, seq, Recipe(epochs=1, window=64, cover=True, threads=1), console=QUIET)
    export(tmp_path / "m", model, "market", seq, horizons=("100ms",))
    assert weights.read(tmp_path / "m").header["side"] == 8


def test_signal_learns_and_is_calibrated():
    rng = np.random.default_rng(5)
    n, d = 6000, 4
    user = rng.standard_normal((n, d + 2)).astype(np.float32)
    noisy = user[:, 4] + rng.standard_normal(n)
    label = np.where(noisy > 0.5, UP, np.where(noisy < -0.5, DOWN, FLAT)).astype(np.int8)[:, None]
    label[::17] = NO_LABEL
    tail = np.arange(n) >= 4500
    arrays, figures = fit_signal(user, label, d, tail, horizons=(Horizon("1s"),), console=QUIET)
    got = figures["horizons"]["1s"]
    assert got["accuracy"] > got["majority"] + 0.1 and got["ic"] > 0.5 and got["ece"] < 0.05
    assert arrays["sig_W1"].shape == (6, 32) and arrays["sig_W2"].shape == (32, 3)
    assert 0.5 < arrays["sig_temp"][0] < 2


def test_temperature_cools_an_overconfident_model():
    rng = np.random.default_rng(6)
    logits = torch.from_numpy(rng.standard_normal((4000, 3)).astype(np.float32))
    chance = torch.softmax(logits, -1).numpy()
    label = torch.from_numpy(np.array([rng.choice(3, p=p / p.sum()) for p in chance.astype(float)]))
    assert temperature(logits, label) == pytest.approx(1.0, rel=0.15)
    assert temperature(4 * logits, label) == pytest.approx(4.0, rel=0.15)
    assert measure(np.full((4, 3), 1 / 3), np.full(4, NO_LABEL)) == {"n": 0}

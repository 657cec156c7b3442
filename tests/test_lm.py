"""The LM step against numpy in float64; its sums bit for bit in plain loops; rebuild from a ring."""

import math

import numpy as np
import pytest
from numba import njit

from streamai.kernels import lm, maths

WEIGHTS = (
    "kind_emb", "gap_emb", "Wside", "Wg", "bg", "cw", "cb", "lam", "gap_w", "Wo", "W1", "W2", "final_gain",
)  # fmt: skip


def random_weights(d=32, layers=2, m=48, sides=2, items=50, seed=0):
    """Weights of the scale a trained model has."""
    r = np.random.default_rng(seed)

    def g(*shape, scale=1.0):
        return (scale * r.standard_normal(shape)).astype("f4")

    return {
        "item": g(items, d),
        "unknown": g(64, d),
        "bias": g(items),
        "kind_emb": g(8, d, scale=0.3),
        "gap_emb": g(64, d, scale=0.3),
        "Wside": g(sides, d, scale=0.3),
        "Wg": g(layers, d, 4 * d, scale=d**-0.5),
        "bg": g(layers, 4 * d, scale=0.1),
        "cw": g(layers, 4, d, scale=0.5),
        "cb": g(layers, d, scale=0.1),
        "lam": np.abs(g(layers, d)),
        "gap_w": np.abs(g(layers, d, scale=0.2)),
        "Wo": g(layers, d, d, scale=d**-0.5),
        "W1": g(layers, d, 2 * m, scale=d**-0.5),
        "W2": g(layers, m, d, scale=m**-0.5),
        "final_gain": g(d),
    }


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _rms(x):
    return x / np.sqrt(np.mean(x * x) + 1e-6)


def oracle(w, token, kind, gap, side):
    """q f8[n, d] by the formula in the module's head, float64, one obvious line a term."""
    w = {k: v.astype("f8") for k, v in w.items()}
    layers, d = w["lam"].shape
    m = w["W2"].shape[1]
    h, v = np.zeros((layers, d)), np.zeros((layers, 4, d))
    out = []
    for t in range(len(token)):
        e = w["item"][token[t]] if token[t] >= 0 else w["unknown"][-1 - token[t]]
        x = e + w["kind_emb"][kind[t]] + w["gap_emb"][gap[t]] + side[t] @ w["Wside"]
        for k in range(layers):
            p = _rms(x) @ w["Wg"][k] + w["bg"][k]
            r, i, now, o = p[:d], p[d : 2 * d], p[2 * d : 3 * d], p[3 * d :]
            v[k] = np.vstack([now, v[k, :3]])
            u = (w["cw"][k] * v[k]).sum(0) + w["cb"][k]
            a = np.exp(-w["lam"][k] * _sigmoid(r) * (1 + w["gap_w"][k] * gap[t] / 16))
            h[k] = a * h[k] + np.sqrt(np.maximum(0, 1 - a * a)) * _sigmoid(i) * u
            x = x + (h[k] * o * _sigmoid(o)) @ w["Wo"][k]
            f = _rms(x) @ w["W1"][k]
            x = x + (f[:m] * _sigmoid(f[:m]) * f[m:]) @ w["W2"][k]
        out.append(_rms(x) * w["final_gain"])
    return np.array(out)


def sequence(n, items, sides, seed=1):
    r = np.random.default_rng(seed)
    side = (r.integers(-30, 30, (n, sides)) / 16).astype("f4")
    token = r.integers(-64, items, n).astype("i4")
    return token, r.integers(0, 8, n).astype("u1"), r.integers(0, 64, n).astype("u1"), side


def run(w, token, kind, gap, side, state=None):
    layers, d = w["lam"].shape
    state = np.zeros(layers * 4 * d, "f4") if state is None else state
    q = np.zeros((len(token), d), "f4")
    scratch = np.full(16 * d + 4 * w["W2"].shape[1], np.nan, "f4")
    known = np.ones(len(w["item"]), "u1")
    lm.run(token, kind, gap, side, w["item"], known, w["unknown"],
           *(w[k] for k in WEIGHTS), state, scratch, q)  # fmt: skip
    return q, state


SHAPES = [(16, 1, 16, 0), (32, 2, 48, 2), (64, 2, 128, 2), (128, 3, 256, 10)]


@pytest.mark.parametrize("d, layers, m, sides", SHAPES)
def test_step_equals_float64(d, layers, m, sides):
    w = random_weights(d, layers, m, sides)
    events = sequence(60, 50, sides)
    q, _ = run(w, *events)
    exact = oracle(w, *events)
    assert np.max(np.abs(q - exact) / (1 + np.abs(exact))) < 1e-5


def test_cut_anywhere_gives_the_same_bits():
    w = random_weights()
    token, kind, gap, side = sequence(40, 50, 2)
    q, state = run(w, token, kind, gap, side)
    again, at = np.zeros_like(state), 0
    parts = []
    for n in (1, 7, 3, 29):
        cut = slice(at, at + n)
        parts.append(run(w, token[cut], kind[cut], gap[cut], side[cut], again)[0])
        at += n
    assert np.vstack(parts).tobytes() == q.tobytes() and again.tobytes() == state.tobytes()


@njit
def _plain(x, w, y, phases):
    for j in range(w.shape[1]):
        sums = np.zeros(4, np.float32)
        for i in range(w.shape[0]):
            sums[i % phases] = maths.fma_f4(x[i], w[i, j], sums[i % phases])
        y[j] = sums[0] if phases == 1 else (sums[0] + sums[1]) + (sums[2] + sums[3])


@pytest.mark.parametrize("n, m", [(64, 256), (64, 64), (128, 64), (16, 16), (48, 96), (32, 592)])
def test_matvec_has_the_bits_of_plain_loops(n, m):
    r = np.random.default_rng(n + m)
    x, w = r.standard_normal(n).astype("f4"), r.standard_normal((n, m)).astype("f4")
    y, one, four = (np.zeros(m, "f4") for _ in range(3))
    lm.matvec(x, w, y)
    _plain(x, w, one, 1)
    _plain(x, w, four, 4)
    wide = m // 256 * 256  # blocks of 256 columns are one sum, the rest four
    assert y[:wide].tobytes() == one[:wide].tobytes() and y[wide:].tobytes() == four[wide:].tobytes()


@pytest.mark.parametrize("n_events, size", [(0, 8), (5, 8), (8, 8), (29, 8)])
def test_rebuild_is_the_ring_from_zeros(n_events, size):
    w = random_weights(sides=2)
    layers, d = w["lam"].shape
    token, kind, gap, side = sequence(n_events, 50, 2)
    ring = np.zeros((size, 8), "u1")
    for c in range(n_events):
        ring[c % size, :4] = token[c : c + 1].view("u1")
        ring[c % size, 4:6] = kind[c], gap[c]
        ring[c % size, 6:] = (side[c] * 16).astype("i1").view("u1")
    keep = slice(max(0, n_events - size), n_events)
    q, state = run(w, token[keep], kind[keep], gap[keep], side[keep])
    got, scratch, last = np.full_like(state, 7), np.zeros(16 * d + 4 * 48, "f4"), np.zeros(d, "f4")
    lm.rebuild(ring.reshape(-1), 8, n_events, w["item"], np.ones(50, "u1"), w["unknown"],
               *(w[k] for k in WEIGHTS), got, scratch, np.zeros(2, "f4"), last)  # fmt: skip
    assert got.tobytes() == state.tobytes()
    assert last.tobytes() == (q[-1] if n_events else np.zeros(d, "f4")).tobytes()


def test_gap_bucket():
    assert [lm.gap_bucket(t) for t in (-5, 0, 1)] == [0, 0, 1]
    r = np.random.default_rng(0)
    gaps = np.concatenate([10 ** r.uniform(0, 18, 5000), np.arange(1, 100) * 1e6]).astype("i8")
    for dt in gaps:
        exact = 1 + math.floor(2 * math.log2((1_000_000 + int(dt)) / 1e6))
        assert lm.gap_bucket(dt) == min(63, exact)
    for k in range(1, 30):  # edges: 2^k ms is where an even bucket begins
        assert lm.gap_bucket((2**k - 1) * 1_000_000) == 1 + 2 * k
        assert lm.gap_bucket((2**k - 1) * 1_000_000 - 1) == 2 * k


def test_tokens():
    item, unknown = np.arange(6, dtype="f4").reshape(3, 2), -np.arange(128, dtype="f4").reshape(64, 2)
    known = np.array([1, 0, 1], "u1")
    assert lm.token_of(2, 99) == 2 and lm.token_of(-1, 64 + 5) == -6
    assert lm.embed(2, item, known, unknown).tolist() == [4, 5]
    assert lm.embed(-6, item, known, unknown).tolist() == unknown[5].tolist()
    assert lm.embed(1, item, known, unknown).tolist() == unknown[1].tolist()
    assert lm.embed(70, item, known, unknown).tolist() == unknown[6].tolist()

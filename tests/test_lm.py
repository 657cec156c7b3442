"""The LM step against numpy in float64; its sums bit for bit in plain loops; rebuild from a ring."""

import math

import numpy as np
import pytest
from numba import njit

from streamai.kernels import lm, maths, quant


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
        "Wq": np.zeros((0, 0), "i1"), "Ws": np.zeros((0, 0), "f4"), "Wc": np.zeros((0, 0), "i4"),
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


def run(w, token, kind, gap, side, state=None, halves=False):
    layers, d = w["lam"].shape
    state = np.zeros((layers * 4 + 1) * d, "f4") if state is None else state
    q = np.zeros((len(token), d), "f4")
    m = lm.hidden_units(w["W2"], w["Ws"], d)
    scratch, octets = np.full(16 * d + 4 * m, np.nan, "f4"), np.zeros(max(d, m), "u1")
    known = np.ones(len(w["item"]), "u1")
    lm.run(token, kind, gap, side, w["item"], known, w["unknown"],
           *(w[k] for k in lm.ARRAYS), halves, state, scratch, octets, q)  # fmt: skip
    return q, state


SHAPES = [(16, 1, 16, 0), (32, 2, 48, 2), (64, 2, 128, 2), (128, 3, 256, 10)]


@pytest.mark.parametrize("d, layers, m, sides", SHAPES)
def test_step_equals_float64(d, layers, m, sides):
    w = random_weights(d, layers, m, sides)
    events = sequence(60, 50, sides)
    q, _ = run(w, *events)
    exact = oracle(w, *events)
    assert np.max(np.abs(q - exact) / (1 + np.abs(exact))) < 1e-5


def in_int8(w):
    """The weights packed as the kernel takes them, and as the floats that they stand for."""
    int8, floats = dict(w), dict(w)
    layers = len(w["Wg"])
    steps, sums, packed = [], [], []
    for name in ("Wg", "Wo", "W1", "W2"):
        step = np.abs(w[name]).max(1) / np.float32(127)
        whole = np.rint(w[name] / step[:, None]).astype("i1")
        floats[name] = whole * step[:, None]
        n, m = whole.shape[1:]
        parts = [(np.zeros(n * m, "i1"), np.zeros(m, "i4")) for _ in range(layers)]
        for k, (octets, column) in enumerate(parts):
            quant.pack(whole[k], octets, column)
        steps.append(step)
        packed.append(np.stack([p[0] for p in parts]))
        sums.append(np.stack([p[1] for p in parts]))
        int8[name] = np.zeros((0, 0, 0), "f4")
    int8 |= {"Wq": np.concatenate(packed, 1), "Ws": np.concatenate(steps, 1), "Wc": np.concatenate(sums, 1)}
    return int8, floats


@pytest.mark.parametrize("d, layers, m, sides", SHAPES)
def test_int8_is_the_float_model_of_its_weights_up_to_its_own_steps(d, layers, m, sides):
    int8, floats = in_int8(random_weights(d, layers, m, sides))
    events = sequence(60, 50, sides)
    q, _ = run(int8, *events)
    exact = oracle(floats, *events)
    error = np.sqrt(((q - exact) ** 2).sum(1) / (exact**2).sum(1))
    assert error.max() < 0.08 and error.mean() < 0.03  # inputs are rounded to 1 / 127 of their greatest


@pytest.mark.parametrize("int8", [False, True])
def test_half_precision_rounds_the_state_after_every_event(int8):
    w = random_weights()
    w = in_int8(w)[0] if int8 else w
    events = sequence(30, 50, 2)
    by_hand = np.zeros(9 * 32, "f4")
    for t in range(30):
        q, _ = run(w, *(a[t : t + 1] for a in events), by_hand)
        by_hand[:] = by_hand.astype("f2")
        assert by_hand[-32:].tobytes() == q[0].astype("f2").astype("f4").tobytes()
    q, state = run(w, *events, halves=True)
    assert state.tobytes() == by_hand.tobytes() and q[-1].tobytes() == by_hand[-32:].tobytes()


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("int8", [False, True])
def test_cut_anywhere_gives_the_same_bits(int8, halves):
    w = random_weights()
    w = in_int8(w)[0] if int8 else w
    token, kind, gap, side = sequence(40, 50, 2)
    q, state = run(w, token, kind, gap, side, halves=halves)
    again, at = np.zeros_like(state), 0
    parts = []
    for n in (1, 7, 3, 29):
        cut = slice(at, at + n)
        parts.append(run(w, token[cut], kind[cut], gap[cut], side[cut], again, halves)[0])
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


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("n_events, size", [(0, 8), (5, 8), (8, 8), (29, 8)])
def test_rebuild_is_the_ring_from_zeros(n_events, size, int8, halves):
    w = random_weights(sides=2)
    w = in_int8(w)[0] if int8 else w
    layers, d = w["lam"].shape
    token, kind, gap, side = sequence(n_events, 50, 2)
    ring = np.zeros((size, 8), "u1")
    for c in range(n_events):
        ring[c % size, :4] = token[c : c + 1].view("u1")
        ring[c % size, 4:6] = kind[c], gap[c]
        ring[c % size, 6:] = (side[c] * 16).astype("i1").view("u1")
    keep = slice(max(0, n_events - size), n_events)
    q, state = run(w, token[keep], kind[keep], gap[keep], side[keep], halves=halves)
    got, scratch, last = np.full_like(state, 7), np.zeros(16 * d + 4 * 48, "f4"), np.zeros(d, "f4")
    lm.rebuild(ring.reshape(-1), 8, n_events, w["item"], np.ones(50, "u1"), w["unknown"],
               *(w[k] for k in lm.ARRAYS), halves, got, scratch, np.zeros(48, "u1"), np.zeros(2, "f4"),
               last)  # fmt: skip
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

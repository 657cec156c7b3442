"""Scan, exact scores, head and top k against the obvious loops; ties, masks, any shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai.kernels import rank


def packed(item):
    n, d = item.shape
    blocks = -(-n // 16)
    panels, scale = np.zeros((blocks, d, 16), "i1"), np.zeros(blocks * 16, "f4")
    rank.pack(item, panels, scale)
    return panels, scale


def unpacked(panels, n):
    """i4[n, d] from panels, by the documented place of every byte."""
    blocks, d, _ = panels.shape
    flat = panels.reshape(blocks, d * 16)
    out = np.zeros((n, d), "i4")
    for i in range(n):
        for j in range(d):
            out[i, j] = flat[i >> 4, (j & 1) + 2 * (i & 15) + 32 * (j >> 1)]
    return out


def plain_scan(panels, scale, bias, available, exclude, n, words, step, k):
    """The k best by plain integer sums; score with two roundings fewer than float32 would need."""
    rows = unpacked(panels, n)
    best = []
    for i in range(n):
        if available[i] == 0 or exclude[i] != 0:
            continue
        total = sum(int(a) * int(b) for a, b in zip(rows[i], words))
        factor = np.float32(step) * scale[i]
        # the product is exact in float64 and so is its sum with a float32 of this size: one rounding
        score = np.float32(np.longdouble(np.float32(total)) * np.longdouble(factor) + np.longdouble(bias[i]))
        best.append((-score, i))
    kept = sorted(best)[:k]
    return {i: -s for s, i in kept}


def scan(panels, scale, bias, available, exclude, n, q, k, room=None):
    words = np.zeros(len(q), "i2")
    step = rank.quantise(q, words)
    size = room or 4 * k + 16
    values, ids = np.zeros(size, "f4"), np.zeros(size, "i4")
    m = rank.scan(panels, scale, bias, available, exclude, n, words, step, k, values, ids)
    return ids[:m].copy(), values[:m].copy(), words, step


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 40), st.sampled_from([4, 16, 64, 96]))
def test_scan_equals_plain_integer_loops(seed, n, k, d):
    r = np.random.default_rng(seed)
    # few different rows and biases: many ties
    item = r.integers(-2, 3, (n, d)).astype("f4")[r.integers(0, n, n)]
    cap = -(-n // 16) * 16
    bias = r.integers(-2, 3, cap).astype("f4")
    available, exclude = (r.random(cap) < 0.8).astype("u1"), (r.random(cap) < 0.2).astype("u1")
    q = r.integers(-3, 4, d).astype("f4")
    panels, scale = packed(item)
    ids, values, words, step = scan(panels, scale, bias, available, exclude, n, q, k, room=k + 16)
    expected = plain_scan(panels, scale, bias, available, exclude, n, words, step, k)
    assert ids.tolist() == sorted(expected)
    assert values.tolist() == [expected[i] for i in sorted(expected)]


@pytest.mark.parametrize("n, d, k", [(3700, 64, 24), (5000, 128, 128), (777, 32, 100)])
def test_scan_finds_the_exact_best(n, d, k):
    r = np.random.default_rng(n)
    item, q = r.standard_normal((n, d)).astype("f4"), r.standard_normal(d).astype("f4")
    on, off, bias = np.ones(n + 16, "u1"), np.zeros(n + 16, "u1"), np.zeros(n + 16, "f4")
    ids, _, _, _ = scan(*packed(item), bias, on, off, n, q, k)
    again, _, _, _ = scan(*packed(item), bias, on, off, n, q, k, room=k + 16)
    assert ids.tolist() == again.tolist() == sorted(ids)
    exact = np.zeros(k, "f4")
    rank.rescore(item, bias, q, ids, len(ids), exact)
    assert np.allclose(exact, item[ids] @ q, atol=1e-4)
    best = np.argsort(-(item.astype("f8") @ q))[:10]
    assert set(best) <= set(ids)


def test_scan_of_zero_vectors_and_nothing():
    item = np.zeros((20, 16), "f4")
    on, off, bias = np.ones(32, "u1"), np.zeros(32, "u1"), np.zeros(32, "f4")
    ids, values, _, _ = scan(*packed(item), bias, on, off, 20, np.zeros(16, "f4"), 5)
    assert ids.tolist() == [0, 1, 2, 3, 4] and values.tolist() == [0] * 5
    ids, _, _, _ = scan(*packed(item), bias, off, off, 20, np.ones(16, "f4"), 5)
    assert len(ids) == 0


def test_quantised_query_is_close():
    r = np.random.default_rng(3)
    for d in (16, 64, 1024):
        q, words = r.standard_normal(d).astype("f4"), np.zeros(d, "i2")
        step = rank.quantise(q, words)
        assert np.max(np.abs(words * step - q)) <= 0.51 * step
        assert 127 * np.abs(words.astype("i8")).sum() < 2**31


def test_rescore_is_a_fixed_order():
    r = np.random.default_rng(1)
    item, bias, q = r.standard_normal((50, 64)).astype("f4"), r.standard_normal(50).astype("f4"), r.random(64)
    q = q.astype("f4")
    ids = r.permutation(50).astype("i4")
    together, alone = np.zeros(50, "f4"), np.zeros(50, "f4")
    rank.rescore(item, bias, q, ids, 50, together)
    for c in range(50):
        rank.rescore(item, bias, q, ids[c : c + 1], 1, alone[c : c + 1])
    assert together.tobytes() == alone.tobytes()
    assert np.allclose(together, item[ids].astype("f8") @ q + bias[ids], atol=1e-5)


@pytest.mark.parametrize("features, hidden", [(0, 16), (5, 32), (20, 64)])
def test_head_by_its_formula(features, hidden):
    r = np.random.default_rng(hidden)
    d, n = 64, 37

    def g(*shape):
        return r.standard_normal(shape).astype("f4")

    q, f, z, mean, inv, ring = g(d), g(features), g(n, 16), g(16), np.abs(g(16)), g(3)
    if features:
        f[1] = np.nan
    fm, fi, bu = g(features), np.abs(g(features)), g(hidden)
    Wu = g(d + features + 3, hidden) * np.float32(0.1)
    w, b, Wz, W2 = g(16), g(1), g(16, hidden), g(hidden)
    user, out = np.zeros(hidden, "f4"), np.zeros(n, "f4")
    rank.head_user(q, f, ring, fm, fi, Wu, bu, user)
    rank.head_score(z, n, mean, inv, w, b, Wz, W2, user, np.zeros(16, "f4"), out)
    x = np.concatenate([q, np.nan_to_num((f - fm) * fi), ring]).astype("f8")
    zn = (z.astype("f8") - mean) * inv
    expected = zn @ w + b[0] + np.maximum(zn @ Wz + bu + x @ Wu, 0) @ W2
    assert np.allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_scores_become_probabilities_beside_none_of_them():
    scores = np.array([3, -2, 100, 7, 0.5], "f4")
    for n in (5, 2):
        best = np.array([scores[:n].max(), -2, 0], "f4")
        rank.to_probabilities(scores, n, best[:2])
        e = np.exp(scores[:n].astype("f8") - 100)
        total = e.sum() + np.exp(-100.0)
        assert np.allclose(best[:2], [e.max() / total, np.exp(-102.0) / total], rtol=1e-5) and best[2] == 0


@pytest.mark.parametrize("sides", [0, 4])
def test_signal_head_gives_probabilities(sides):
    r = np.random.default_rng(sides)
    d, features, hidden, horizons = 32, 6, 48, 5

    def g(*shape):
        return r.standard_normal(shape).astype("f4")

    q, f, side, fm, fi = g(d), g(features), g(sides), g(features), np.abs(g(features))
    f[2] = np.nan
    W1, b1, W2, b2 = g(d + features + sides, hidden) * np.float32(0.2), g(hidden), g(hidden, 15), g(15)
    temperature = np.array([0.5, 1, 2, 3, 4], "f4")
    out = np.zeros(15, "f4")
    rank.signal_head(q, f, side, fm, fi, W1, b1, W2, b2, temperature, np.zeros(hidden, "f4"), out)
    x = np.concatenate([q, np.nan_to_num((f - fm) * fi), side]).astype("f8")
    logits = (np.maximum(x @ W1 + b1, 0) @ W2 + b2).reshape(horizons, 3) / temperature[:, None]
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    assert np.allclose(out.reshape(horizons, 3), expected, atol=1e-5)


def test_softmax_of_extremes():
    out = np.array([1000, -1000, 1000], "f4")
    rank.softmax3(out, 0, np.float32(1))
    assert out.tolist() == [0.5, 0, 0.5]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0, float("nan")]), max_size=30), st.integers(1, 12),
       st.randoms())  # fmt: skip
def test_top_k_is_a_sort(scores, k, rng):
    ids = list(range(len(scores)))
    rng.shuffle(ids)
    items, values = np.full(k, 9, "i4"), np.full(k, 9, "f4")
    m = rank.top_k(np.array(scores, "f4"), np.array(ids, "i4"), len(scores), k, items, values)
    wanted = sorted((-s, i) for s, i in zip(scores, ids) if s == s)[:k]
    assert m == len(wanted)
    assert items.tolist() == [i for _, i in wanted] + [-1] * (k - m)
    assert values.tolist() == [-s for s, _ in wanted] + [0] * (k - m)

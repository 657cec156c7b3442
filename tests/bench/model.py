"""The model's kernels: one LM step, the catalogue scan, one update of the counts; hot, one core."""

import os
import subprocess
import sys
import time

import numpy as np
from numba import njit

from streamai.kernels import counts, jit, lm, quant, rank, simd
from tests.bench import large, names


def _best(call, repeats=150):
    """Seconds of the fastest of some calls, the first (compiling) one left out.

    Calls of a millisecond or two: on a busy machine some of them then run without being interrupted.
    """
    call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


@njit(**jit)
def _multiply_adds(n):
    """n times twelve vectors of sixteen fused multiply-adds that do not wait for each other."""
    x, y = simd.splat(np.float32(1.0001)), simd.splat(np.float32(1e-7))
    a = b = c = d = e = f = g = h = i = j = k = l = y
    for _ in range(n):
        a, b, c, d = simd.fma(a, x, y), simd.fma(b, x, y), simd.fma(c, x, y), simd.fma(d, x, y)
        e, f, g, h = simd.fma(e, x, y), simd.fma(f, x, y), simd.fma(g, x, y), simd.fma(h, x, y)
        i, j, k, l = simd.fma(i, x, y), simd.fma(j, x, y), simd.fma(k, x, y), simd.fma(l, x, y)
    s = simd.add(simd.add(simd.add(a, b), simd.add(c, d)), simd.add(simd.add(e, f), simd.add(g, h)))
    return simd.total(simd.add(s, simd.add(simd.add(i, j), simd.add(k, l))))


@njit(**jit)
def _read(x):
    """Every float of x once, eight vectors at a time."""
    a = b = c = d = e = f = g = h = simd.splat(np.float32(0))
    for i in range(0, x.size - 127, 128):
        a, b = simd.add(a, simd.load(x, i)), simd.add(b, simd.load(x, i + 16))
        c, d = simd.add(c, simd.load(x, i + 32)), simd.add(d, simd.load(x, i + 48))
        e, f = simd.add(e, simd.load(x, i + 64)), simd.add(f, simd.load(x, i + 80))
        g, h = simd.add(g, simd.load(x, i + 96)), simd.add(h, simd.load(x, i + 112))
    s = simd.add(simd.add(simd.add(a, b), simd.add(c, d)), simd.add(simd.add(e, f), simd.add(g, h)))
    return simd.total(s)


@njit(**jit)
def _read_times(x, n):
    s = np.float32(0)
    for _ in range(n):
        s += _read(x)
    return s


@njit(**jit)
def _octet_dots(n, octets, packed, out):
    """n times twelve vectors of sixteen dot products of four bytes that do not wait for each other."""
    z = simd.zero_integers()
    a = b = c = d = e = f = g = h = i = j = k = l = z
    dot = simd.dot_quads
    for _ in range(n):
        a, b, c = dot(a, packed, 0, octets, 0), dot(b, packed, 64, octets, 0), dot(c, packed, 128, octets, 0)
        d, e, f = dot(d, packed, 0, octets, 4), dot(e, packed, 64, octets, 4), dot(f, packed, 128, octets, 4)
        g, h, i = dot(g, packed, 0, octets, 8), dot(h, packed, 64, octets, 8), dot(i, packed, 128, octets, 8)
        j, k = dot(j, packed, 0, octets, 12), dot(k, packed, 64, octets, 12)
        l = dot(l, packed, 128, octets, 12)
    for x in (a, b, c, d, e, f, g, h, i, j, k, l):
        z = simd.add_integers(z, x)
    simd.store_integers(out, 0, z)


def _octet_ops():
    """8-bit multiply-adds a second."""
    octets, packed, out = np.ones(16, np.uint8), np.ones(192, np.int8), np.zeros(16, np.int32)
    return 20_000 * 12 * 64 / _best(lambda: _octet_dots(20_000, octets, packed, out))


def _flops():
    """Multiply-adds a second."""
    return 20_000 * 12 * 16 / _best(lambda: _multiply_adds(20_000))


def _bandwidth(size):
    """Bytes a second of reading a block of this many bytes again and again."""
    x, n = np.ones(max(128, size // 512 * 128), np.float32), max(1, 10_000_000 // size)
    return x.nbytes * n / _best(lambda: _read_times(x, n))


def in_int8(w):
    """The matrices of w packed in 8 bits; see `kernels.quant`."""
    parts, steps, sums = [], [], []
    for name in ("Wg", "Wo", "W1", "W2"):
        step = np.abs(w[name]).max(1) / np.float32(127)
        whole = np.rint(w[name] / step[:, None]).astype(np.int8)
        n, m = whole.shape[1:]
        packed, column = np.zeros((len(whole), n * m), np.int8), np.zeros((len(whole), m), np.int32)
        for k in range(len(whole)):
            quant.pack(whole[k], packed[k], column[k])
        parts.append(packed)
        steps.append(step)
        sums.append(column)
    empty = {n: np.zeros((0, 0, 0), np.float32) for n in ("Wg", "Wo", "W1", "W2")}
    joined = (np.ascontiguousarray(np.concatenate(x, 1)) for x in (parts, steps, sums))
    return w | empty | dict(zip(("Wq", "Ws", "Wc"), joined))


def made(d, n):
    """Weights of 2 layers of width d, item and unknown tables, and n tokens, kinds, gaps and sides."""
    r = np.random.default_rng(d)
    layers, m, items = 2, 2 * d, 1000

    def g(*shape):
        return (r.standard_normal(shape) * 0.1).astype(np.float32)

    w = {
        "kind_emb": g(8, d), "gap_emb": g(64, d), "Wside": g(2, d), "Wg": g(layers, d, 4 * d),
        "bg": g(layers, 4 * d), "cw": g(layers, 4, d), "cb": g(layers, d), "lam": np.abs(g(layers, d)),
        "gap_w": np.abs(g(layers, d)), "Wo": g(layers, d, d), "W1": g(layers, d, 2 * m),
        "W2": g(layers, m, d), "final_gain": g(d),
    }  # fmt: skip
    item, unknown = g(items, d), g(64, d)
    token, side = r.integers(0, items, n).astype(np.int32), g(n, 2)
    kind, gap = r.integers(0, 8, n).astype(np.uint8), r.integers(0, 64, n).astype(np.uint8)
    return w, item, unknown, token, kind, gap, side


def _step(d, int8=False):
    layers, m, n = 2, 2 * d, 16_000 // d
    w, item, unknown, token, kind, gap, side = made(d, n)
    known = np.ones(len(item), np.uint8)
    w |= {"Wq": np.zeros((0, 0), np.int8), "Ws": np.zeros((0, 0), np.float32)}
    w["Wc"] = np.zeros((0, 0), np.int32)
    state, scratch = np.zeros((layers * 4 + 1) * d, np.float32), np.zeros(16 * d + 4 * m, np.float32)
    q, arrays, octets = np.zeros((n, d), np.float32), [w[k] for k in lm.ARRAYS], np.zeros(4 * d, np.uint8)
    if int8:
        arrays = [in_int8(w)[k] for k in lm.ARRAYS]
    seconds = _best(
        lambda: lm.run(
            token, kind, gap, side, item, known, unknown, *arrays, int8, state, scratch, octets, q
        )
    )
    return {
        "name": f"lm/step_{d}{'_int8' if int8 else ''}", "value": seconds / n * 1e6, "unit": "us", "n": n,
        **floor(w, int8),
    }  # fmt: skip


def floor(w, int8):
    """The least time of one step on this machine, us: of its multiply-adds or of reading its weights."""
    work = sum(w[k].size for k in ("Wg", "Wo", "W1", "W2"))
    size = work if int8 else 4 * work
    floors = {"multiply-adds": work / (_octet_ops() if int8 else _flops())}
    floors["reading the weights"] = size / _bandwidth(size)
    slowest = max(floors, key=floors.get)
    return {"limit": floors[slowest] * 1e6, "limit_is": slowest, "weights_kb": size // 1024}


@names("lm/step_64")
def step_64():
    return _step(64)


@names("lm/step_128")
def step_128():
    return _step(128)


@names("lm/step_64_int8")
def step_64_int8():
    """Matrices in 8 bits, state in halves."""
    return _step(64, True)


@names("lm/step_128_int8")
def step_128_int8():
    return _step(128, True)


@njit(**jit)
def _scans(queries, panels, scale, bias, available, exclude, n, words, k, values, ids):
    found = 0
    for i in range(queries.shape[0]):
        step = rank.quantise(queries[i], words)
        found += rank.scan(panels, scale, bias, available, exclude, n, words, step, k, values, ids)
    return found


_NUMPY_SCAN = """
import sys, time, numpy as np
n, d, k = map(int, sys.argv[1:])
r = np.random.default_rng(n)
item, q = r.standard_normal((n, d), np.float32), r.standard_normal((3, d), np.float32)
best = np.inf
for _ in range(100):
    began = time.perf_counter()
    for row in q:
        np.argpartition(item @ row, n - k)[n - k :]
    best = min(best, time.perf_counter() - began)
print(best / 3)
"""


def _numpy_scan(n, d, k):
    """Seconds of one query in numpy: a process of its own, since BLAS takes its threads when it starts."""
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-c", _NUMPY_SCAN, str(n), str(d), str(k)]
    return float(subprocess.run(command, env=os.environ | one, capture_output=True, check=True).stdout)


def _scan(n, d=64, k=64, queries=20):
    r = np.random.default_rng(n)
    cap = -(-n // 16) * 16
    item, q = r.standard_normal((n, d), np.float32), r.standard_normal((queries, d), np.float32)
    panels, scale = np.zeros((cap // 16, d, 16), np.int8), np.zeros(cap, np.float32)
    rank.pack(item, panels, scale)
    bias, on, off = np.zeros(cap, np.float32), np.ones(cap, np.uint8), np.zeros(cap, np.uint8)
    words, room = np.zeros(d, np.int16), 4 * k + 16
    values, ids = np.zeros(room, np.float32), np.zeros(room, np.int32)
    ours = _best(lambda: _scans(q, panels, scale, bias, on, off, n, words, k, values, ids))
    size = panels.nbytes + 4 * scale.nbytes
    return {
        "name": f"scan/{n}", "value": ours / queries * 1e6, "unit": "us", "n": queries,
        "peer": "numpy float32 matvec + argpartition, one thread", "peer_value": _numpy_scan(n, d, k) * 1e6,
        "limit": size / _bandwidth(size) * 1e6, "limit_is": "reading the panels", "d": d, "k": k,
    }  # fmt: skip


@names("scan/3700")
def scan_3700():
    return _scan(3700)


@names("scan/26000")
def scan_26000():
    return _scan(26_000)


@names("scan/100000")
def scan_100000():
    return _scan(100_000)


@names("scan/1000000", "scan/1000000_clustered", "scan/1000000_gaussian")
def scan_1000000():
    """Through the index; scan/1000000 is of a trained model where the environment names one."""
    kinds = {"": large.trained, "_clustered": large.clustered, "_gaussian": large.gaussian}
    made = (
        large.measure(f"scan/1000000{kind}", data, _bandwidth, large.faiss_peer)
        for kind, data in kinds.items()
    )
    return [row for row in made if row is not None]


@njit(**jit)
def _learn_all(ids, w, pop, fast, norm, top_pop, top_fast, clock, tau, hist, item, t):
    for e in range(item.size):
        counts.learn(ids, w, pop, fast, norm, top_pop, top_fast, clock, tau, hist[e], hist.shape[1], item[e],
                     t[e])  # fmt: skip


@njit(**jit)
def _read_rows(ids, w, hist):
    """Every row that the updates touch, read once: what memory alone costs."""
    zero = simd.splat(np.float32(0))
    s = zero
    width = ids.shape[1]
    names = simd.zero_integers()
    for e in range(hist.shape[0]):
        for k in range(hist.shape[1]):
            at = np.int64(hist[e, k]) * width
            for b in range(0, width, 16):
                s = simd.add(s, simd.load(w, at + b))
                names = simd.add_integers(names, simd.load_integers(ids, at + b))
    return simd.total(simd.add(s, simd.to_floats(names)))


@names("counts/update", "counts/score")
def counts_update(n_items=26_000, width=64, events=30_000):
    """Zipf items in chains of neighbours, full histories of twenty, 64 neighbours an item."""
    r = np.random.default_rng(0)
    share = np.cumsum(1 / np.arange(1, n_items + 1))
    item = np.searchsorted(share / share[-1], r.random(events + 20)).astype(np.int32)
    item[1::2] = (item[::2] + r.integers(1, 30, len(item[::2]))).astype(np.int32)[: len(item[1::2])] % n_items
    item = r.permutation(n_items).astype(np.int32)[item]
    # neighbouring events are of different users: the rows of one are not still warm from the last
    order = r.permutation(events)
    hist = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(item, 20)[order, ::-1])
    item, t = item[20 + order], np.arange(events) * 500_000 + 10**18
    ids, w = np.zeros((n_items, width), np.int32), np.zeros((n_items, width), np.float32)
    pop, fast, norm = (np.zeros(n_items, np.float32) for _ in range(3))
    top_pop, top_fast = np.zeros(64, np.int32), np.zeros(64, np.int32)
    clock, tau = np.zeros(16, np.int64), np.array([365.0, 7.0]) * 86_400e9
    table = (ids, w, pop, fast, norm, top_pop, top_fast, clock, tau)
    _learn_all(*table, hist, item, t)  # fills the table
    part = 1500
    hist, item, t = hist[:part], item[:part], t + t[-1] - t[0]
    seconds = _best(lambda: _learn_all(*table, hist, item, t))
    return [
        {
            "name": "counts/update", "value": seconds / part * 1e9, "unit": "ns", "n": part,
            "limit": _best(lambda: _read_rows(ids, w, hist)) / part * 1e9,
            "limit_is": "reading the rows", "items": n_items, "neighbours": width,
        },
        _counts_score(table, hist[:500], t[-1], n_items, width),
    ]  # fmt: skip


@njit(**jit)
def _score_all(ids, w, pop, norm, clock, tau, hist, n, t, acc, touched, on, off, k, values, out):
    for e in range(hist.shape[0]):
        m = counts.accumulate(ids, w, pop, norm, clock, tau, hist[e], n, t, acc, touched)
        counts.best(acc, touched, m, on, off, k, values, out)
        counts.clear(acc, touched, m)


def _counts_score(table, hist, t, n_items, width):
    ids, w, pop, _, norm, _, _, clock, tau = table
    acc, touched = np.zeros(n_items, np.float32), np.zeros(15 * width, np.int32)
    values, out = np.zeros(15 * width, np.float32), np.zeros(15 * width, np.int32)
    on, off = np.ones(n_items, np.uint8), np.zeros(n_items, np.uint8)
    scratch = (acc, touched, on, off, 100, values, out)
    seconds = _best(lambda: _score_all(ids, w, pop, norm, clock, tau, hist, 15, t, *scratch))
    each = seconds / len(hist) * 1e9
    return {"name": "counts/score", "value": each, "unit": "ns", "n": len(hist), "scored": 15, "k": 100}

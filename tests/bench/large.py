"""A million items: what the index finds and takes, on three kinds of vectors, beside faiss.

clustered  2,000 middles with noise; queries beside middles
gaussian   no structure at all: the worst that an index can meet
trained    only with STREAMAI_BENCH_WEIGHTS=a clicks model of width 64 and STREAMAI_BENCH_EVENTS=a parquet
           with user_id and item_id in order of time: its item table, every row many times with noise of 0.3
           of the columns' spread; queries are its LM's outputs after halves and wholes of users' histories

faiss-cpu (IVF with 8-bit rows, inner product, as many lists, one thread) is the peer where it is installed,
at the first number of lists at which its recall is ours less 0.002.
"""

from __future__ import annotations

import os
import time

import numpy as np
from numba import njit

from streamai.kernels import ivf, jit, lm, rank
from streamai.model import index, tables, weights

N, D, K = 1_000_000, 64, 100
FOUND = 160
QUERIES, ROUNDS = 500, 4


@njit(**jit)
def _search(q, words, panels, scale, mb, reach, score, on, off, probed, mv, lists, packed, steps, bias, live,
            item, exclude, start, table, table_bias, values, ids, cand, best, best_s):  # fmt: skip
    step = rank.quantise(q, words)
    m = ivf.choose(q, words, step, panels, scale, mb, reach, score, on, off, probed, mv, lists)
    n = ivf.scan(packed, steps, bias, live, item, exclude, start, lists, m, words, step, FOUND, values, ids)
    rank.rescore(table, table_bias, q, ids, n, cand)
    return rank.top_k(cand, ids, n, K, best, best_s)


def clustered(r):
    """(item f4[N, D], bias f4[N], queries to tune by, queries to judge by f4[QUERIES, D])."""
    middles = r.standard_normal((2000, D), np.float32)
    item = middles[r.integers(0, 2000, N)] + np.float32(0.5) * r.standard_normal((N, D), np.float32)
    asked = middles[r.integers(0, 2000, 2 * QUERIES)]
    asked = asked + np.float32(0.7) * r.standard_normal((2 * QUERIES, D), np.float32)
    return item, np.zeros(N, np.float32), asked[:QUERIES], asked[QUERIES:]


def gaussian(r):
    """The same, without any structure."""
    asked = r.standard_normal((2 * QUERIES, D), np.float32)
    return r.standard_normal((N, D), np.float32), np.zeros(N, np.float32), asked[:QUERIES], asked[QUERIES:]


def trained(r):
    """The same, of a trained model; None where the environment names none."""
    path, events = os.environ.get("STREAMAI_BENCH_WEIGHTS"), os.environ.get("STREAMAI_BENCH_EVENTS")
    if not path or not events:
        return None
    model = weights.read(path)
    arrays = tables.lm_arrays(model)
    item, bias = arrays["item"], arrays["bias"]
    pick, spread = r.integers(0, len(item), N), np.float32(0.3) * item.std(0)
    grown = item[pick] + spread * r.standard_normal((N, D), np.float32)
    more = bias[pick] + np.float32(0.3) * bias.std() * r.standard_normal(N, np.float32)
    # tuned by what `streamai index` has: the LM's own walks over the grown table
    known = np.ones(N, np.uint8)
    table = arrays | {"item": grown, "bias": more, "known": known, "present": known, "scannable": known}
    return grown, more, table, _outputs(model, arrays, events, r)


def _outputs(model, arrays, events, r):
    import polars as pl

    row = {item_id: v for v, item_id in enumerate(model.vocabulary)}
    m, out = lm.hidden_units(arrays["W2"], arrays["Ws"], D), []
    for (_,), own in pl.read_parquet(events).group_by(["user_id"], maintain_order=True):
        token = np.array([row.get(str(i), -1) for i in own["item_id"].to_list()[:300]], np.int32)
        token, n = token[token >= 0], int((token >= 0).sum())
        if n < 20:
            continue
        q, gap = np.zeros((n, D), np.float32), r.integers(0, 40, n).astype(np.uint8)
        side, present = (
            np.zeros((n, len(arrays["Wside"])), np.float32),
            np.ones(len(arrays["item"]), np.uint8),
        )
        state = np.zeros((4 * len(arrays["bg"]) + 1) * D, np.float32)
        lm.run(
            token, np.ones(n, np.uint8), gap, side, arrays["item"], present, arrays["unknown"],
            *[arrays[name] for name in lm.ARRAYS], False, state, np.zeros(16 * D + 4 * m, np.float32),
            np.zeros(max(D, m), np.uint8), q,
        )  # fmt: skip
        out += [q[n // 2], q[-1]]
        if len(out) >= QUERIES:
            break
    return np.array(out, np.float32)


def _tuned(item, bias, asked):
    """What `index.build` makes, with the queries to tune by where they are given as such."""
    known = np.ones(len(item), np.uint8)
    if isinstance(asked, dict):
        return asked, index.build(asked)
    arrays = {"item": item, "bias": bias, "known": known, "scannable": known}
    list_of, middle = index.cluster(item, bias, float(np.abs(asked).mean()))
    kept = {"list_of": list_of, "middle": middle, "reach": 2.0, "probed": 64}
    return arrays, kept | index.tuned(arrays, index.placed(arrays, kept), kept, asked[: index.QUERIES])


def measure(name, data, bandwidth, peer):
    """Row of one kind of vectors; bandwidth(bytes) -> bytes/s of reading a block of that size."""
    found = data(np.random.default_rng(1))
    if found is None:
        return None
    item, bias, asked, q = found
    began = time.perf_counter()
    arrays, kept = _tuned(item, bias, asked)
    built = time.perf_counter() - began
    i = index.placed(arrays, kept)
    size = len(i["ivf_reach"])
    room, every = np.zeros(4 * FOUND + 16, np.float32), np.zeros(4 * FOUND + 16, np.int32)
    best, best_s = np.zeros(K, np.int32), np.zeros(K, np.float32)
    scratch = (np.zeros(size, np.float32), np.ones(size, np.uint8), np.zeros(size, np.uint8))
    fixed = (np.zeros(4 * size + 16, np.float32), np.zeros(4 * size + 16, np.int32), i["packed"], i["scale"],
             i["ivf_bias"], i["ivf_live"], i["ivf_item"], np.zeros(len(item), np.uint8), i["ivf_start"], item,
             bias, room, every, np.zeros(FOUND, np.float32), best, best_s)  # fmt: skip

    def search(row, probed):
        _search(row, words, *(i[f"ivf_{name}"] for name in parts),
                *scratch, probed, *fixed)  # fmt: skip

    parts = ("middle", "middle_scale", "middle_bias", "reach")
    words, exact, wall, cpu, hits = np.zeros(D, np.int16), [], [], [], []
    for row in q:
        exact.append(set(np.argpartition(-(item @ row + bias), K)[:K].tolist()))
    search(q[0], kept["probed"])
    for turn in range(ROUNDS):
        for row, want in zip(q, exact, strict=True):
            a, b = time.perf_counter(), time.thread_time()
            search(row, kept["probed"])
            cpu.append(time.thread_time() - b)
            wall.append(time.perf_counter() - a)
            if turn == 0:
                hits.append(len(want & set(best.tolist())) / K)
    whole = []
    for row in q[:40]:
        a = time.thread_time()
        search(row, size)
        whole.append(time.thread_time() - a)
    recall, scanned = float(np.mean(hits)), kept["scanned"] * i["packed"].nbytes
    theirs, note = peer(item, bias, q, exact, size, recall)
    return {
        "name": name, "value": float(np.median(wall)) * 1e6, "unit": "us", "n": len(wall),
        "peer": note, "peer_value": theirs, "limit": scanned / bandwidth(i["packed"].nbytes) * 1e6,
        "limit_is": "reading the scanned rows", "recall@100": round(recall, 4),
        "recall_p5": float(np.percentile(hits, 5)), "p99": float(np.percentile(wall, 99)) * 1e6,
        "p99_cpu": float(np.percentile(cpu, 99)) * 1e6, "whole_table_us": float(np.median(whole)) * 1e6,
        "lists": size, "probed": kept["probed"], "scanned": round(kept["scanned"], 4),
        "tuned_recall": round(kept["recall"], 4), "build_s": round(built, 1),
        "index_mb": round(sum(a.nbytes for a in i.values()) / 1e6), "d": D, "k": K,
    }  # fmt: skip


def faiss_peer(item, bias, q, exact, lists, recall):
    """(us of a query at our recall, what it is) of faiss, or (None, None) where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None, None
    faiss.omp_set_num_threads(1)
    rows = np.concatenate([item, bias[:, None], np.zeros((len(item), 7), np.float32)], 1)
    asked = np.concatenate([q, np.ones((len(q), 1), np.float32), np.zeros((len(q), 7), np.float32)], 1)
    there = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )  # fmt: skip
    there.train(rows[np.random.default_rng(0).permutation(len(rows))[: 40 * lists]])
    there.add(rows)
    for probed in (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048):
        there.nprobe, taken, hits = probed, [], []
        for row, want in zip(asked, exact, strict=True):
            a = time.perf_counter()
            _, ids = there.search(row[None], FOUND)
            taken.append(time.perf_counter() - a)
            mine = ids[0][ids[0] >= 0]
            order = np.argsort(-(item[mine] @ row[:D] + bias[mine]))[:K]
            hits.append(len(want & set(mine[order].tolist())) / K)
        if np.mean(hits) >= recall - 0.002:
            break
    return float(
        np.median(taken)
    ) * 1e6, f"faiss IVF{lists}, SQ8, nprobe {probed}, recall {np.mean(hits):.3f}"

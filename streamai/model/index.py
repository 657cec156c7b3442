"""The inverted file over a large item table (kernels/ivf.py): built by k-means, tuned by its recall, kept.

Vectors are clustered with their bias as one more dimension, so that popular items share lists. Every sum is
in a fixed order and no BLAS takes part: the same table gives the same lists, and the same answers, anywhere.
`streamai index` writes the lists to a file beside the model; without one they are made at every start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path

import numpy as np

from streamai.errors import ModelError
from streamai.kernels import ivf, lm, rank
from streamai.model.weights import Weights

log = logging.getLogger("streamai.model")

LISTS_MAX, ITEMS_A_LIST = 4096, 240
ROUNDS, SAMPLE_A_LIST = 8, 40
"""Rounds of k-means, and the points of a list that it looks at; all are assigned in the end."""
SPARE = 16
"""Blocks of the last list, which is always scanned: free places for items that come later."""
RECALL, TOP, PROBED_MIN = 0.99, 100, 64
"""Share of the exact best that the tuning queries must find, and lists that every query scans: 0.95 is
promised, the rest is margin, as the LM's own walks are easier to answer than people's (0.97 was 0.94)."""
SCANNED_MAX = 0.35
"""Most of the table that a query scans on average, even where the recall is then below."""
REACHES = (1.0, 2.0, 3.0, 4.0, 6.0)
QUERIES, WALK = 256, 8
_LANES = 16
NAMES = ("start", "item", "live", "bias", "reach", "middle", "middle_scale", "middle_bias", "place", "probed")


def of_table(arrays: dict, weights: Weights | None, n: int, scan_max: int) -> dict[str, np.ndarray]:
    """`packed`, `scale` and the arrays `ivf_*` of kernels.context.Tables for a table of n rows.

    Up to scan_max rows: panels by item, and an index of no lists. Above: the lists of the file beside the
    model where it is of this very table, else they are made here (some 20 s for a million items).
    """
    item, bias, known = (arrays[name] for name in ("item", "bias", "known"))
    d = item.shape[1]
    if weights is None or n <= scan_max or known.sum() < 2 * _LANES:
        panels, scale = np.zeros((n // _LANES, d, _LANES), "i1"), np.zeros(n, "f4")
        if n and d:
            rank.pack(item, panels, scale)
        return {"packed": panels, "scale": scale} | _none(d)
    mark = digest(item, bias, known)
    kept = _read(file_of(weights.path), mark)
    if kept is None:
        log.warning("%s: no index of these %d items; making one (`streamai index` keeps it)", weights.path, n)
        kept = build(arrays)
    return placed(arrays, kept)


def file_of(model: str | Path) -> Path:
    """Where the lists of a model file's items are kept."""
    return Path(f"{model}.index")


def digest(item: np.ndarray, bias: np.ndarray, known: np.ndarray) -> str:
    """What a kept index must match: the table in catalogue order, 16 hex digits."""
    h = hashlib.blake2b(digest_size=8)
    for a in (item, bias, known):
        h.update(np.ascontiguousarray(a).view("u1").data)
    return h.hexdigest()


def _none(d: int) -> dict[str, np.ndarray]:
    types = dict.fromkeys(("bias", "reach", "middle_scale", "middle_bias"), "f4") | {
        "live": "u1",
        "middle": "i1",
    }
    empty = {f"ivf_{name}": np.zeros(0, types.get(name, "i4")) for name in NAMES}
    return empty | {"ivf_middle": np.zeros((0, d, _LANES), "i1"), "ivf_probed": np.zeros(1, "i4")}


def _read(path: Path, mark: str) -> dict | None:
    """A kept index, or None where there is none or it is of another table. ModelError: it cannot be read."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = dict(file)
        if str(kept.pop("table")) != mark:
            return None
        return kept | {name: kept[name].item() for name in ("probed", "reach", "recall", "scanned")}
    except (OSError, ValueError, KeyError) as e:
        raise ModelError(f"{path} is no index of items ({e}); make it again: `streamai index`") from e


def facts(path: Path) -> dict | None:
    """What a kept index says of itself: lists, probed, recall@100, scanned; None without a file."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as kept:
        return {
            "file": str(path), "lists": len(kept["middle"]), "probed": int(kept["probed"]),
            "recall@100": round(float(kept["recall"]), 4), "scanned": round(float(kept["scanned"]), 4),
        }  # fmt: skip


def write(path: Path, kept: dict, mark: str) -> None:
    """Keep what `build` made, whole or not at all."""
    part = Path(f"{path}.part")
    with part.open("wb") as file:
        np.savez(file, table=np.array(mark), **kept)
    os.replace(part, path)


def build(arrays: dict) -> dict:
    """list_of i4[N] (-1: the model does not know the item), middle f4[L, d], reach and probed (lists a query
    scans), recall@100 and scanned (share of the table) as measured."""
    known = np.flatnonzero(arrays["known"])
    item, bias = np.ascontiguousarray(arrays["item"][known]), arrays["bias"][known]
    size = float(np.abs(arrays["final_gain"]).mean())  # a query is of length 1 a dimension, times this
    began = time.monotonic()
    groups, middle = cluster(item, bias, size)
    list_of = np.full(len(arrays["item"]), -1, np.int32)
    list_of[known] = groups
    kept = {"list_of": list_of, "middle": middle, "reach": 2.0, "probed": 64}
    everywhere = placed(arrays, kept | {"live": arrays["known"]})
    queries = rollouts(arrays, everywhere)
    kept |= tuned(arrays, everywhere, kept, queries)
    log.info(
        "index: %d items in %d lists, %d of them scanned: recall@100 %.3f, %.1f %% of the rows; %.1f s",
        len(known), len(middle), kept["probed"], kept["recall"], 100 * kept["scanned"],
        time.monotonic() - began,
    )  # fmt: skip
    return kept


def lists_for(n: int) -> int:
    """Number of lists, a multiple of 16, of a table of n items."""
    return max(_LANES, min(LISTS_MAX, n // ITEMS_A_LIST) // _LANES * _LANES)


def cluster(item: np.ndarray, bias: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """List of each item i4[n] and the lists' middles f4[L, d], of vectors item f4[n, d] and bias f4[n].

    size: of a query's numbers, |q_j| on average; so far apart are two items as their scores are.
    """
    n, d = item.shape
    count = lists_for(n)
    points = np.zeros((n, d + 4), np.float32)
    points[:, :d] = item
    points[:, d] = (bias - np.median(bias)) / np.float32(max(size, 1e-6))
    random = np.random.default_rng(0)
    some = np.ascontiguousarray(points[np.sort(random.permutation(n)[: SAMPLE_A_LIST * count])])
    middle = some[np.sort(random.permutation(len(some))[:count])].copy()
    total, seen = np.zeros((count, d + 4)), np.zeros(count, np.int64)
    list_of = np.zeros(len(some), np.int32)
    for _ in range(ROUNDS):
        _assign(some, middle, list_of)
        ivf.middles(some, list_of, total, seen, middle)
        _refill(middle, seen, random)
    list_of = np.zeros(n, np.int32)
    _assign(points, middle, list_of)
    ivf.middles(points, list_of, total, seen, middle)
    return list_of, np.ascontiguousarray(middle[:, :d])


def _assign(points: np.ndarray, middle: np.ndarray, out: np.ndarray) -> None:
    count, d = middle.shape
    panels, scale = np.zeros((count // _LANES, d, _LANES), np.int8), np.zeros(count, np.float32)
    rank.pack(middle, panels, scale)
    half = np.zeros(count, np.float32)
    for j in range(d):  # one rounding a term, in the order of j
        half -= np.float32(0.5) * middle[:, j] * middle[:, j]
    values, ids = np.zeros(64, np.float32), np.zeros(64, np.int32)
    on, off = np.ones(count, np.uint8), np.zeros(count, np.uint8)
    ivf.assign(points, panels, scale, half, on, off, np.zeros(d, np.int16), values, ids, out)


def _refill(middle: np.ndarray, seen: np.ndarray, random: np.random.Generator) -> None:
    """Lists without points take half of the largest: a middle a little beside it."""
    empty = np.flatnonzero(seen == 0)
    for at, full in zip(empty, np.argsort(-seen, kind="stable"), strict=False):
        middle[at] = middle[full] * (1 + 1e-3 * random.standard_normal(middle.shape[1])).astype(np.float32)


def placed(arrays: dict, kept: dict) -> dict[str, np.ndarray]:
    """The arrays of kernels/ivf.py for given lists; what is found is `scannable`, or kept["live"]."""
    item, bias, list_of, middle = arrays["item"], arrays["bias"], kept["list_of"], kept["middle"]
    live = kept.get("live", arrays.get("scannable"))
    n, d = item.shape
    count = len(middle)
    sizes = np.bincount(list_of[list_of >= 0], minlength=count)
    start = np.zeros(count + 2, np.int32)
    np.cumsum(np.append(-(-sizes // _LANES), SPARE), out=start[1:])
    places = int(start[-1]) * _LANES
    out = {
        "packed": np.zeros((places // _LANES, d, _LANES), "i1"), "scale": np.zeros(places, "f4"),
        "ivf_start": start, "ivf_item": np.zeros(places, "i4"), "ivf_live": np.zeros(places, "u1"),
        "ivf_bias": np.zeros(places, "f4"), "ivf_place": np.full(n, -1, "i4"),
        "ivf_middle": np.zeros((count // _LANES, d, _LANES), "i1"),
        "ivf_middle_scale": np.zeros(count, "f4"), "ivf_probed": np.array([kept["probed"]], "i4"),
    }  # fmt: skip
    ivf.fill(
        item, bias, live, list_of, start, out["ivf_item"], out["ivf_live"], out["ivf_place"], out["packed"],
        out["scale"], out["ivf_bias"], np.zeros(count + 1, np.int32),
    )  # fmt: skip
    rank.pack(middle, out["ivf_middle"], out["ivf_middle_scale"])
    means, spread = of_lists(item, bias, list_of, middle)
    return out | {"ivf_middle_bias": means, "ivf_reach": np.float32(kept["reach"]) * spread}


def of_lists(item, bias, list_of, middle) -> tuple[np.ndarray, np.ndarray]:
    """Of each list, f4[L]: mean bias (-1e30 for one without items), and how far along any one direction of
    length 1 the best of its items is expected from the middle."""
    count, d = middle.shape
    seen, total, means = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
    ivf.spread(item, bias, list_of, middle, total, means, seen)
    reach = total / np.sqrt(d) * np.sqrt(2 * np.log(np.maximum(seen, 2)))
    return np.where(seen > 0, means, -1e30).astype("f4"), reach.astype("f4")


def rollouts(arrays: dict, index: dict) -> np.ndarray:
    """Queries f4[QUERIES, d] like those to come: the LM reads items that it would recommend itself.

    Each begins at a random item and goes on WALK times with one of the 64 best of a few lists.
    """
    known = np.flatnonzero(arrays["known"])
    random = np.random.default_rng(1)
    d, m = arrays["item"].shape[1], int(lm.hidden_units(arrays["W2"], arrays["Ws"], arrays["item"].shape[1]))
    layers = len(arrays["bg"])
    scratch, octets = np.zeros(16 * d + 4 * m, "f4"), np.zeros(max(d, m), "u1")
    search = Search(arrays, index)
    out = np.zeros((QUERIES, d), "f4")
    sides = np.zeros((1, len(arrays["Wside"])), "f4")
    for row in out:
        state, token = np.zeros((4 * layers + 1) * d, "f4"), int(random.choice(known))
        for _ in range(WALK):
            gap = random.integers(0, 40, 1).astype("u1")
            lm.run(
                np.array([token], "i4"), np.ones(1, "u1"), gap, sides, arrays["item"], arrays["present"],
                arrays["unknown"], *[arrays[name] for name in lm.ARRAYS], False, state, scratch, octets,
                row[None],
            )  # fmt: skip
            token = int(random.choice(search(row, 64, 32)))
    return out


class Search:
    """Searches an index outside an engine. Call with q f4[d]: the k best of `probed` lists i4[<= k], exactly
    scored, best first."""

    def __init__(self, arrays: dict, index: dict) -> None:
        self.a, self.i = arrays, index
        lists = len(index["ivf_reach"])
        self.words, self.score = np.zeros(arrays["item"].shape[1], "i2"), np.zeros(lists, "f4")
        self.on, self.off = np.ones(lists, "u1"), np.zeros(lists, "u1")
        self.values, self.lists = np.zeros(4 * lists + 16, "f4"), np.zeros(4 * lists + 16, "i4")
        self.exclude = np.zeros(len(arrays["item"]), "u1")

    def __call__(self, q: np.ndarray, k: int, probed: int) -> np.ndarray:
        i, room = self.i, 2 * k
        values, ids = np.zeros(4 * room + 16, "f4"), np.zeros(4 * room + 16, "i4")
        step = rank.quantise(q, self.words)
        m = ivf.choose(
            q, self.words, step, i["ivf_middle"], i["ivf_middle_scale"], i["ivf_middle_bias"], i["ivf_reach"],
            self.score, self.on, self.off, probed, self.values, self.lists,
        )  # fmt: skip
        m = ivf.scan(
            i["packed"], i["scale"], i["ivf_bias"], i["ivf_live"], i["ivf_item"], self.exclude,
            i["ivf_start"], self.lists, m, self.words, step, room, values, ids,
        )  # fmt: skip
        rank.rescore(self.a["item"], self.a["bias"], q, ids, m, values)
        best, best_s = np.zeros(k, "i4"), np.zeros(k, "f4")
        return best[: rank.top_k(values, ids, m, k, best, best_s)]


def tuned(arrays: dict, everywhere: dict, kept: dict, queries: np.ndarray) -> dict:
    """reach, probed, recall, scanned: the fewest rows to scan that find RECALL of each query's exact best."""
    list_of, middle = kept["list_of"], kept["middle"]
    count = len(middle)
    means, spread = of_lists(arrays["item"], arrays["bias"], list_of, middle)
    sizes = np.bincount(list_of[list_of >= 0], minlength=count) / max(1, (list_of >= 0).sum())
    search, every, plain = Search(arrays, everywhere), np.arange(count, dtype=np.int32), np.zeros(count, "f4")
    found = {reach: np.zeros(count) for reach in REACHES}  # by place in a query's order of lists
    rows = {reach: np.zeros(count) for reach in REACHES}
    for q in queries:
        lists = list_of[search(q, TOP, count)]
        rank.rescore(middle, means, q, every, count, plain)
        for reach in REACHES:
            order = np.argsort(-(plain + ivf.length(q) * np.float32(reach) * spread), kind="stable")
            place = np.empty(count, np.int64)
            place[order] = every
            np.add.at(found[reach], place[lists], 1 / len(lists) / len(queries))
            rows[reach] += np.cumsum(sizes[order]) / len(queries)
    best = None
    for reach in REACHES:
        recall = np.cumsum(found[reach])
        enough, most = np.searchsorted(recall, RECALL), np.searchsorted(rows[reach], SCANNED_MAX)
        probed = min(max(1 + min(enough, most), PROBED_MIN), count)
        at = (float(recall[probed - 1]) < RECALL, float(rows[reach][probed - 1]), -float(recall[probed - 1]))
        if best is None or at < best[0]:
            best = at, {"reach": reach, "probed": int(probed), "recall": -at[2], "scanned": at[1]}
    return best[1]

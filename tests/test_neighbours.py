"""VMIS-kNN and STAN against their formulas in dictionaries."""

import math

import numpy as np
import pytest

from streamai.evaluate import neighbours
from streamai.evaluate.baselines import History
from streamai.evaluate.neighbours import DAY_NS, Stan, VmisKnn

N, KEYS = 12, 9


def stream(seed, n=220):
    r = np.random.default_rng(seed)
    t = np.cumsum(r.integers(1, DAY_NS // 20, n))
    return list(zip(r.integers(0, KEYS, n).tolist(), (r.integers(0, N + 1, n) - 1).tolist(), t.tolist()))


def sessions(events):
    """key -> its last items, newest last; key -> time of its last event."""
    items, last = {}, {}
    for key, item, t in events:
        items.setdefault(key, []).append(item)
        last[key] = t
    return {k: v[-neighbours.HISTORY :] for k, v in items.items()}, last


def neighbours_of(events, key):
    """Keys that ever had an item of the session, with those items by their place from its end, 1 = last."""
    items, _ = sessions(events)
    mine = items[key][::-1]
    out = {}
    for other in items:
        theirs = {i for k, i, _ in events if k == other}
        if other != key:
            places = {}
            for x, item in enumerate(mine, 1):
                if item >= 0 and item in theirs and item not in places:
                    places[item] = x
            if places:
                out[other] = places
    return mine, out


def vmis(events, key):
    mine, near = neighbours_of(events, key)
    items, _ = sessions(events)
    length, all_keys = len(mine), len({k for k, _, _ in events})
    like = {o: sum((length - x + 1) / length for x in p.values()) for o, p in near.items()}
    best = sorted(like, key=lambda o: (-like[o], o))[: neighbours.NEIGHBOURS]
    scores = np.zeros(N)
    for o in best:
        x = min(near[o].values())
        if x < 10:
            for item in set(items[o]) - {-1}:
                had = len({k for k, i, _ in events if i == item})
                scores[item] += (1 - x / 10) * like[o] * math.log(max(1.0001, all_keys / had))
    return scores


def stan(events, key, now):
    mine, near = neighbours_of(events, key)
    items, last = sessions(events)
    like = {}
    for o, places in near.items():
        own = sum(math.exp(-(x - 1) / Stan.L1) for x in places.values())
        own /= math.sqrt(len(mine) * len(items[o]))
        like[o] = own * math.exp(-(now - last[o]) / Stan.L2_NS)
    best = sorted(like, key=lambda o: (-like[o], o))[: neighbours.NEIGHBOURS]
    scores = np.zeros(N)
    for o in best:
        shared = mine[min(near[o].values()) - 1]
        theirs = items[o][::-1]
        if shared not in theirs:
            continue
        at = theirs.index(shared)
        for j, item in enumerate(theirs):
            if item >= 0:
                scores[item] += like[o] * math.exp(-abs(j - at) / Stan.L3)
    return scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("few", [100, 3])
def test_scores_are_those_of_the_formulas(monkeypatch, seed, few):
    monkeypatch.setattr(neighbours, "NEIGHBOURS", few)
    monkeypatch.setattr(neighbours, "HISTORY", 12)
    events, history = stream(seed), History()
    v, s = VmisKnn(N, KEYS), Stan(N, KEYS)
    for row, (key, item, t) in enumerate(events):
        for b in (v, s):
            b.learn(key, item, t, history)
        history.add(key, item)
        if row % 17 == 16:
            seen = events[: row + 1]
            assert v.scores(key, t, history) == pytest.approx(vmis(seen, key), abs=1e-9)
            assert s.scores(key, t, history) == pytest.approx(stan(seen, key, t), abs=1e-9)


def test_an_item_remembers_the_keys_that_had_it_last():
    p = neighbours.Postings(recent=2)
    for key in (1, 2, 1, 3):
        p.learn(key, 7)
    assert p.of(7).tolist() == [1, 3] and p.had[7] == {1, 2, 3} and not len(p.of(8))

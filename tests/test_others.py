"""Counts of other partitions beside the own: the obvious Python, restarts, files, and that it helps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamai.catalogue import Catalogue
from streamai.engine import Engine
from streamai.errors import DeclarationError, ModelError
from streamai.events import CLICKS
from streamai.flow import Counts, Flow
from streamai.kernels import others as kernel
from streamai.model import merged
from streamai.state.store import MemoryStore
from tests.made import ITEMS, clicks

DAY_NS = 86_400 * 10**9
COUNTS = Counts(neighbours=16, tau_days=0.05, fast_tau_days=0.01)


def flow_of(**more) -> Flow:
    return Flow("f", "clicks", views=(), schema=CLICKS, catalogue=ITEMS, counts=COUNTS, **more)


def parts(n: int = 1200, seed: int = 5):
    """The same events by two groups of keys."""
    events = clicks(n, seed)
    mine = events.rows["hash0"] % np.uint64(2) == 0
    return events, mine


def outputs(engine: Engine, events, which) -> list[tuple]:
    out = []
    for i in np.flatnonzero(which).tolist():
        scored = engine.step(events[i : i + 1], 3)
        if not len(scored):
            engine.checkpoint()
            scored = engine.step(events[i : i + 1], 3)
        out.append((scored.items.tobytes(), scored.scores.tobytes()))
    return out


def feed(engine: Engine, events, which) -> None:
    outputs(engine, events, which)


def obvious(engine: Engine, t: int, n: int) -> dict[int, float]:
    """s(j) in float64, by the formula in kernels/others.py."""
    s, other, tau = engine.state_arrays, engine.others, engine.counts.tau[0]
    left = math.exp(-(t - int(engine.clock[1])) / tau)
    left_other = math.exp(-(t - other.as_of_ns) / tau)
    out: dict[int, float] = {}
    for age, i in enumerate(engine.arrays["hist"][:n].tolist(), 1):
        if i < 0:
            continue
        pop = float(s["pop"][i]) * left + float(other.pop[i]) * left_other
        for ids, w, how in ((s["ids"], s["w"], left), (other.neighbours, other.w, left_other)):
            for j, weight in zip(ids[i].tolist(), w[i].tolist()):
                if j > 0:
                    out[j - 1] = out.get(j - 1, 0.0) + weight * how / age / (pop + 20)
    for j in out:
        own = float(s["norm"][j]) ** -5 if s["norm"][j] > 0 else 20.0
        out[j] *= (own + float(other.pop[j])) ** -0.2
    return out


def test_scores_are_the_formula_s():
    events, mine = parts()
    engine, elsewhere = Engine(flow_of()), Engine(flow_of())
    feed(elsewhere, events, ~mine)
    feed(engine, events[:600], mine[:600])
    engine.take_others(elsewhere.snapshot())
    feed(engine, events[600:], mine[600:])
    last = int(np.flatnonzero(mine)[-1])
    t = int(events.rows["event_ts_ns"][last]) + 60 * 10**9
    kernel.factors(engine.tables, engine.state, engine.work, t)
    m = kernel.accumulate(engine.tables, engine.state, engine.work, 3)
    expected = obvious(engine, t, 3)
    got = {int(j): float(engine.arrays["acc"][j]) for j in engine.arrays["touched"][:m]}
    assert got.keys() == {j for j, s in expected.items() if s > 0} and len(got) > 10
    assert all(math.isclose(got[j], expected[j], rel_tol=2e-5) for j in got)


def test_a_table_of_nothing_and_of_none_are_the_partition_alone():
    events, mine = parts(400)
    alone, empty, gone = (Engine(flow_of()) for _ in range(3))
    empty.take_others(Engine(flow_of()).snapshot())
    gone.take_others(Engine(flow_of()).snapshot())
    gone.take_others(None)
    expected = outputs(alone, events, mine)
    assert outputs(gone, events, mine) == expected
    close = 0
    for (items, _), (other, _) in zip(outputs(empty, events, mine), expected):
        close += items == other
    assert close > 0.9 * len(expected)  # the last factor is rounded otherwise


def test_the_same_bits_after_a_restart_and_for_any_cut():
    events, mine = parts(700)
    elsewhere = Engine(flow_of())
    feed(elsewhere, events, ~mine)
    table = merged.merge([elsewhere.snapshot()], elsewhere.counts.tau)
    store = MemoryStore()
    engine, whole = Engine(flow_of(), store=store), Engine(flow_of())
    whole.take_others(table)
    engine.take_others(table)
    at = np.flatnonzero(mine)
    half = np.zeros(len(mine), bool)
    half[at[: len(at) // 2]] = True
    first = outputs(engine, events, half)
    engine.checkpoint()
    again = Engine(flow_of(), store=store)
    again.take_others(table)
    assert first + outputs(again, events, mine & ~half) == outputs(whole, events, mine)


def test_merging_adds_and_keeps_the_greatest():
    tau = np.array([10.0 * DAY_NS, 1.0 * DAY_NS])
    rng = np.random.default_rng(3)
    n, k, ids = 40, 16, [f"i{i}" for i in range(40)]
    made = []
    for p in range(3):
        neighbours = np.zeros((n, k), "i4")
        for row in neighbours:
            many = rng.integers(0, k + 1)
            row[:many] = 1 + rng.permutation(n)[:many]
        w = (rng.random((n, k)) * (neighbours > 0)).astype("f4")
        pop, fast = rng.random(n).astype("f4"), rng.random(n).astype("f4")
        made.append(merged.Table(ids, neighbours, w, pop, fast, (20 + p) * DAY_NS))
    table = merged.merge(made, tau)
    assert table.as_of_ns == 22 * DAY_NS
    for i in range(n):
        total: dict[int, float] = {}
        for p, t in enumerate(made):
            for j, w in zip(t.neighbours[i], t.w[i]):
                if j:
                    total[int(j)] = total.get(int(j), 0) + float(w) * math.exp((p - 2) / 10)
        best = sorted(total, key=lambda j: -total[j])[:k]
        got = {int(j): float(w) for j, w in zip(table.neighbours[i], table.w[i]) if j}
        assert got.keys() == set(best)
        assert all(math.isclose(got[j], total[j], rel_tol=1e-5) for j in got)
    expected = sum(t.fast * math.exp(p - 2) for p, t in enumerate(made))
    assert np.allclose(table.fast, expected, rtol=1e-5)
    assert merged.merge(made, tau).digest == table.digest != merged.merge(made[:2], tau).digest


def test_a_file_is_read_back_or_refused_and_fits_another_catalogue(tmp_path):
    events, _ = parts(500)
    engine = Engine(flow_of())
    feed(engine, events, np.ones(500, bool))
    table = engine.snapshot()
    table.write(tmp_path / "t.counts")
    again = merged.read(tmp_path / "t.counts")
    assert again.digest == table.digest and again.of_catalogue(table.ids, len(table.ids)) is again
    data = (tmp_path / "t.counts").read_bytes()
    for bad in (data[:-4], data + b"x", b"nonsense", data[:30]):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ModelError, match="not a table of counts"):
            merged.read(tmp_path / "bad")
    ids = Catalogue.load(ITEMS).ids
    other = ["new", *reversed(ids[10:])]
    moved = table.of_catalogue(other, len(other) + 3)
    for name in ids[10:40]:
        a, b = table.ids.index(name), other.index(name)
        links = {table.ids[j - 1]: w for j, w in zip(table.neighbours[a], table.w[a]) if j}
        kept = {k: v for k, v in links.items() if k in other}
        assert {other[j - 1]: w for j, w in zip(moved.neighbours[b], moved.w[b]) if j} == kept
        assert moved.pop[b] == table.pop[a]


def test_popularity_is_of_all_partitions():
    events, mine = parts(900)
    elsewhere, engine = Engine(flow_of()), Engine(flow_of())
    feed(elsewhere, events, ~mine)
    engine.take_others(elsewhere.snapshot())
    feed(engine, events[:50], mine[:50])
    last = int(np.flatnonzero(mine[:50])[-1])
    scored = engine.step(events[last : last + 1], 1)
    tops = engine.others.arrays()["others_top_fast"]
    assert scored.scores[0, 0] <= 1.0 and set(scored.items[0].tolist()) & set((tops[:10] - 1).tolist())


def test_what_a_flow_may_say():
    with pytest.raises(DeclarationError, match="0s"):
        flow_of(merge="0s")
    with pytest.raises(DeclarationError, match="with a catalogue"):
        Flow("f", "clicks", views=(), schema=CLICKS, merge="5m")
    with pytest.raises(DeclarationError, match="give the flow another name"):
        Flow("models", "clicks", views=(), schema=CLICKS)
    assert "versions" in flow_of(merge="5m").topics and "versions" not in flow_of().topics

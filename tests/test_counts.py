"""Counts against plain Python; the popular lists; restart from a rolling snapshot and a log, bit for bit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai.kernels import counts
from streamai.kernels.context import CLOCK_SIZE, LANDMARK, RESCALED

DAY = 86_400 * 10**9


class Table:
    """All arrays of the counts of n items."""

    def __init__(self, n, width=16, tau=(365.0, 7.0), top=8):
        self.ids, self.w = np.zeros((n, width), "i4"), np.zeros((n, width), "f4")
        self.pop, self.fast, self.norm = (np.zeros(n, "f4") for _ in range(3))
        self.top_pop, self.top_fast = np.zeros(top, "i4"), np.zeros(top, "i4")
        self.clock, self.tau = np.zeros(CLOCK_SIZE, "i8"), np.array(tau) * DAY

    def rows(self):
        return self.ids, self.w, self.pop, self.fast, self.norm

    def learn(self, hist, item, t):
        h = np.array(hist, "i4")
        counts.learn(*self.rows(), self.top_pop, self.top_fast, self.clock, self.tau, h, len(h), item, t)

    def bytes(self):
        return b"".join(a.tobytes() for a in (*self.rows(), self.top_pop, self.top_fast, self.clock))


def stream(n_items, events, seed, days=30.0, users=20):
    """(item, history most recent first, time ns) with rare unknown items in the histories."""
    r = np.random.default_rng(seed)
    t = np.sort(r.uniform(0, days, events)) * DAY + 10**18
    last = [[] for _ in range(users)]
    for e in range(events):
        u = int(r.integers(users))
        item = int(n_items * r.random() ** 3)
        yield item, last[u][: counts.WINDOW], int(t[e])
        last[u].insert(0, item if r.random() > 0.05 else -5)


class Plain:
    """The same in ordinary Python and float64: decayed weights themselves, no landmark."""

    def __init__(self, width, tau):
        self.width, self.tau = width, tau
        self.rows, self.pop, self.fast, self.norm, self.t = {}, {}, {}, {}, None

    def _fade(self, t):
        if self.t is not None:
            slow, fast = (math.exp(-(t - self.t) / (tau * DAY)) for tau in self.tau)
            for row in self.rows.values():
                for link in row:
                    link[1] *= slow
            self.pop = {j: v * slow for j, v in self.pop.items()}
            self.fast = {j: v * fast for j, v in self.fast.items()}
        self.t = t

    def learn(self, hist, item, t):
        self._fade(t)
        for k, i in enumerate(hist):
            if i < 0:
                continue
            row, weight = self.rows.setdefault(i, []), 1 / (k + 1)
            here = [link for link in row if link[0] == item]
            if here:
                here[0][1] += weight
            elif len(row) < self.width:
                row.append([item, weight])
            else:
                smallest = min(row, key=lambda link: link[1])
                if weight >= smallest[1]:
                    smallest[:] = [item, weight]
        self.pop[item] = self.pop.get(item, 0) + 1
        self.fast[item] = self.fast.get(item, 0) + 1
        self.norm[item] = (self.pop[item] + 20) ** -0.2

    def scores(self, hist, t):
        self._fade(t)
        out = {}
        for k, i in enumerate(hist):
            for j, c in self.rows.get(i, []) if i >= 0 else []:
                out[j] = out.get(j, 0) + c / (k + 1) / (self.pop.get(i, 0) + 20)
        return {j: s * self.norm[j] for j, s in out.items()}


@pytest.mark.parametrize("n_items, width, days", [(12, 16, 30), (60, 64, 400), (8, 16, 2000)])
def test_counts_equal_plain_python(n_items, width, days):
    table, plain = Table(n_items, width), Plain(width, (365.0, 7.0))
    acc, touched = np.zeros(n_items, "f4"), np.zeros(15 * width, "i4")
    for item, hist, t in stream(n_items, 400, 1, days):
        expected = plain.scores(hist[:15], t)
        h = np.array(hist[:15], "i4")
        m = counts.accumulate(table.ids, table.w, table.pop, table.norm, table.clock, table.tau,
                              h, len(h), t, acc, touched)  # fmt: skip
        assert sorted(touched[:m]) == sorted(expected)
        for j, s in expected.items():
            assert acc[j] == pytest.approx(s, rel=1e-4)
        counts.clear(acc, touched, m)
        assert not acc.any()
        table.learn(hist, item, t)
        plain.learn(hist, item, t)
    left = counts.decay(table.clock, table.tau[1], t)
    for j, v in plain.fast.items():
        assert table.fast[j] * left == pytest.approx(v, rel=1e-4, abs=1e-30)
    assert table.clock[RESCALED] == days // 420  # every 60 times the fast decay time


def test_gate_replaces_the_smallest_only_by_as_much():
    table = Table(40)
    for j in range(16):  # row 0 full: links 1..16, all of weight 1
        table.learn([0], j + 1, 10**18)
    assert sorted(table.ids[0]) == list(range(2, 18))
    table.learn([39, 0], 20, 10**18)  # one half is not enough
    assert 21 not in table.ids[0]
    table.learn([0], 20, 10**18)  # one is: the lowest slot of the smallest goes
    assert table.ids[0, 0] == 21 and table.w[0, 0] == 1
    table.learn([39, 0], 5, 10**18)  # a link that is there grows by any weight
    assert table.w[0, list(table.ids[0]).index(6)] == 1.5


def test_self_pairs_are_counted_and_unknown_items_keep_their_place():
    table = Table(10)
    table.learn([3, -1, 4], 3, 10**18)
    assert table.ids[3, 0] == 4 and table.w[3, 0] == 1
    assert table.w[4, 0] == np.float32(1) / np.float32(3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 9, 50]), st.sampled_from([5, 3000]))
def test_popular_lists_are_a_sort(seed, n_items, days):
    table = Table(n_items)
    for item, hist, t in stream(n_items, 80, seed, days):
        table.learn(hist, item, t)
        for values, top in ((table.pop, table.top_pop), (table.fast, table.top_fast)):
            order = [i for i in np.lexsort((np.arange(n_items), -values)) if values[i] > 0][: len(top)]
            assert top.tolist() == [i + 1 for i in order] + [0] * (len(top) - len(order))
            again = np.full_like(top, 7)
            counts.rebuild_popular(values, again)
            assert again.tolist() == top.tolist()


@pytest.mark.parametrize("days, stop", [(20, 1000), (2500, 1000), (2500, 777)])
def test_rolling_snapshot_and_log_give_the_live_bits(days, stop):
    """Every 10 events a checkpoint keeps the log and one part of the rows in 16; then the process dies."""
    n, parts, every = 100, 16, 10
    live, kept = Table(n), Table(n)
    offsets, landmark = np.zeros(n, "i8"), np.zeros(n, "i8")
    log, checkpoints = np.zeros(stop, counts.LOG), 0
    for e, (item, hist, t) in enumerate(stream(n, stop, 3, days)):
        live.learn(hist, item, t)
        log[e] = (e, t, item, len(hist), hist + [0] * (counts.WINDOW - len(hist)))
        if (e + 1) % every == 0 and e < stop - 60:  # the last checkpoints wrote only the log
            rows = slice(checkpoints % parts * n // parts, (checkpoints % parts + 1) * n // parts)
            for a, b in zip(kept.rows(), live.rows()):
                a[rows] = b[rows]
            offsets[rows], landmark[rows] = e + 1, live.clock[LANDMARK]
            checkpoints += 1
    oldest = offsets.argmin()
    kept.clock[LANDMARK] = landmark[oldest]
    counts.replay(log[offsets[oldest] :], offsets, *kept.rows(), kept.clock, kept.tau)
    for values, top in ((kept.pop, kept.top_pop), (kept.fast, kept.top_fast)):
        counts.rebuild_popular(values, top)
    kept.clock[RESCALED] = live.clock[RESCALED]  # a figure of this process, not state
    assert days < 420 or live.clock[RESCALED] > 3
    assert kept.bytes() == live.bytes()


def test_best_leaves_out_and_breaks_ties_by_index():
    acc = np.array([0, 2, 1, 2, 2, 3, 0], "f4")
    touched = np.array([4, 3, 1, 2, 5], "i4")
    on, off = np.ones(7, "u1"), np.zeros(7, "u1")
    values, out = np.zeros(5, "f4"), np.zeros(5, "i4")

    def best(k, available=on, exclude=off):
        n = counts.best(acc, touched, 5, available, exclude, k, values, out)
        return dict(zip(out[:n].tolist(), values[:n].tolist()))

    assert best(3) == {5: 3, 1: 2, 3: 2}
    assert best(9) == {5: 3, 4: 2, 3: 2, 1: 2, 2: 1}
    gone = off.copy()
    gone[[5, 1]] = 1
    assert best(2, exclude=gone) == {3: 2, 4: 2}
    assert best(2, available=1 - gone) == {3: 2, 4: 2}


def test_time_zero_and_no_decay():
    table = Table(4, tau=(np.inf, np.inf))
    for t in (0, 0, 5, 10**18):
        table.learn([1], 2, t)
    assert table.w[1, 0] == 4 and table.pop[2] == 4 and table.clock[RESCALED] == 0

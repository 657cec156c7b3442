"""Fills against a slow, obvious oracle; the ledger's identities; draws of the compute time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai.backtest.fills import simulate
from streamai.backtest.latency import Histogram, edges_ns, measure
from streamai.errors import InputError

NAN = math.nan


def oracle_fills(instrument, ts_ns, bid, ask, target, latency_ns, size):
    """Each order looks its book up in the whole history: (event, book, time, quantity, price, position)."""
    out, unfilled = [], 0
    for k in sorted(set(instrument)):
        own = [i for i in range(len(ts_ns)) if instrument[i] == k]
        now, best, level = [], [], [NAN, NAN]
        for i in own:
            now.append(max([*now[-1:], ts_ns[i]]))
            level = [b if math.isnan(x) else x for x, b in zip((bid[i], ask[i]), level)]
            best.append(level)
        sent, due, book, lost = 0.0, 0, 0, False
        for j, i in enumerate(own):
            wanted = target[i] * size
            if math.isnan(wanted) or wanted == sent:
                continue
            quantity, sent = wanted - sent, wanted
            due = max(due, now[j] + latency_ns[i])
            if lost or due > now[-1]:
                lost = True
                unfilled += 1
                continue
            book = max(book, *(m for m in range(len(own)) if now[m] <= due))
            side = 1 if quantity > 0 else 0
            while book < len(own) and math.isnan(best[book][side]):
                book += 1
            if book == len(own):
                lost = True
                unfilled += 1
                continue
            out.append((i, own[book], max(due, now[book]), quantity, best[book][side], sent))
    return sorted(out), unfilled


def oracle_trips(fills, fee_rate):
    """Round trips of one instrument, one unit step at a time: list of (gain after fees, time held)."""
    trips, position, gain, opened = [], 0.0, 0.0, 0
    for _, _, at, quantity, price, after in fills:
        parts = [quantity] if position * after > 0 or 0.0 in (position, after) else [-position, after]
        for part in parts:
            if position == 0.0:
                opened, gain = at, 0.0
            gain -= part * price + fee_rate * abs(part) * price
            position += part
            if position == 0.0:
                trips.append((gain, at - opened))
    return trips


prices = st.one_of(st.just(NAN), st.integers(90, 110).map(float))


@st.composite
def markets(draw):
    n = draw(st.integers(0, 40))
    row = st.tuples(
        st.integers(0, 2),
        st.integers(0, 6),
        prices,
        st.integers(0, 3),
        st.sampled_from([NAN, NAN, -1.0, 0.0, 1.0, 2.0]),
        st.integers(0, 12),
    )
    rows = draw(st.lists(row, min_size=n, max_size=n))
    ts = np.cumsum([r[1] for r in rows]) + [draw(st.integers(-3, 0)) for _ in rows] if rows else np.zeros(0)
    bid = np.array([r[2] for r in rows])
    ask = np.array([NAN if r[3] == 3 else r[2] + r[3] for r in rows])
    whole = [np.array([r[0] for r in rows], np.int32), (ts + 100).astype(np.int64), bid, ask]
    return (*whole, np.array([r[4] for r in rows]), np.array([r[5] for r in rows], np.int64))


@settings(max_examples=400, deadline=None)
@given(markets(), st.sampled_from([1.0, 2.0]), st.sampled_from([0.0, 0.5, 10.0]))
def test_fills_and_ledger_equal_the_oracle(market, size, fee_bp):
    instrument, ts_ns, bid, ask, target, latency_ns = market
    result = simulate(*market, fee_bp=fee_bp, size=size)
    expected, unfilled = oracle_fills(*(a.tolist() for a in market), size)
    names = ["event", "book_event", "fill_ts_ns", "quantity", "price", "position"]
    assert sorted(tuple(f) for f in result.fills[names].tolist()) == expected
    total = result.total
    assert (total.fills, total.unfilled) == (len(expected), unfilled)
    for k, account in enumerate(result.accounts):
        own = [f for f in expected if instrument[f[0]] == k]
        fees = sum(abs(q) * p for _, _, _, q, p, _ in own) * fee_bp * 1e-4
        quoted = [v[(instrument == k) & ~np.isnan(v)] for v in (bid, ask)]
        marks = [v[-1] for v in quoted if len(v)]
        worth = account.position * sum(marks) / len(marks) if account.position else 0.0
        assert account.position == (own[-1][5] if own else 0.0) == sum(f[3] for f in own)
        assert account.gross == pytest.approx(worth - sum(q * p for _, _, _, q, p, _ in own))
        assert account.fees == pytest.approx(fees)
        assert account.net == pytest.approx(account.gross - fees)
        trips = oracle_trips(own, fee_bp * 1e-4)
        assert account.round_trips == len(trips)
        assert account.held_ns == sum(held for _, held in trips)
        assert account.closed_gain == pytest.approx(sum(gain for gain, _ in trips), abs=1e-9)
        sure = [g for g, _ in trips if abs(g) > 1e-9]
        assert sum(g > 0 for g in sure) <= account.hits <= account.round_trips - sum(g < 0 for g in sure)
        if account.position == 0.0:
            assert account.net == pytest.approx(account.closed_gain, abs=1e-9)
    assert result.max_drawdown >= max(0.0, -total.net) - 1e-9


@settings(max_examples=200, deadline=None)
@given(markets(), st.integers(0, 40))
def test_no_fill_looks_ahead(market, cut):
    """What the flow had not yet shown changes no fill: a history cut short gives the same first fills."""
    instrument, ts_ns, *_ = market
    whole, part = simulate(*market).fills, simulate(*(a[:cut] for a in market)).fills
    for k in range(3):
        now = ts_ns[:cut][instrument[:cut] == k].max(initial=0)
        a = whole[(whole["instrument"] == k) & (whole["fill_ts_ns"] < now)]
        b = part[(part["instrument"] == k) & (part["fill_ts_ns"] < now)]
        assert np.array_equal(a, b)
    assert (whole["fill_ts_ns"] >= ts_ns[whole["book_event"]]).all()
    assert (whole["fill_ts_ns"] >= ts_ns[whole["event"]]).all()
    assert (whole["book_event"] >= whole["event"]).all()


def one(ts_ns, bid, ask, target, latency_ns=0, **options):
    kind = (np.int32, np.int64, float, float, float)
    columns = [[0] * len(ts_ns), ts_ns, bid, ask, target]
    return simulate(*(np.array(c, t) for c, t in zip(columns, kind)), latency_ns, **options)


def test_a_round_trip_by_hand():
    """Buy 2 at 11 one second after the decision, sell 2 at 14; 10 bp of 22 and of 28 in fees."""
    second = 10**9
    r = one(
        [0, 1 * second, 2 * second, 3 * second, 5 * second],
        [9, 10, 12, 14, 13],
        [10, 11, 13, 15, 14],
        [1, NAN, 0, NAN, NAN],
        second,
        fee_bp=10,
        size=2,
    )
    a = r.total
    assert r.fills["price"].tolist() == [11, 14] and r.fills["fill_ts_ns"].tolist() == [second, 3 * second]
    assert (a.gross, a.position, a.notional, a.round_trips, a.hits) == (6, 0, 50, 1, 1)
    assert a.fees == pytest.approx(0.05) and a.net == pytest.approx(5.95)
    assert (a.held_ns, a.in_position_ns, a.span_ns) == (2 * second, 2 * second, 5 * second)
    assert a.spread_cost == pytest.approx(2 * 0.5 * 2)
    assert a.slippage == pytest.approx(2 * (11 - 10) - 2 * (14 - 12))
    assert a.exposure == pytest.approx(2 * 10.5 * 1 + 2 * 12.5 * 1)
    assert r.max_drawdown == pytest.approx(2 * 0.5 + 0.028)  # the second spread and its fee


def test_an_order_without_a_later_event_stays_unfilled():
    r = one([0, 10], [9, 9], [10, 10], [1, NAN], 11)
    assert (r.total.fills, r.total.unfilled, r.total.net) == (0, 1, 0.0)


def test_an_order_waits_for_the_first_quote_of_its_side():
    r = one([0, 10, 20], [9, 9, 9], [NAN, NAN, 10], [1, NAN, NAN], 1)
    assert r.fills[["fill_ts_ns", "price"]].tolist() == [(20, 10.0)]


def test_a_change_of_sign_ends_one_round_trip_and_opens_another():
    r = one([0, 1, 2], [9, 19, 9], [10, 20, 10], [1, -1, 0], fee_bp=0)
    assert r.fills["quantity"].tolist() == [1, -2, 1]
    assert (r.total.round_trips, r.total.hits, r.total.net) == (2, 2, 18.0)


def test_more_latency_pays_for_what_the_price_did():
    ts_ns, mid = np.arange(50), np.arange(50) + 100.0
    nets = [one(ts_ns, mid, mid + 1, [1] + [NAN] * 49, late).total.net for late in (0, 5, 20)]
    assert nets == sorted(nets, reverse=True) and nets[0] > nets[2]


@pytest.mark.parametrize(
    "change,says",
    [({"latency_ns": -1}, "negative"), ({"size": 0}, "positive"), ({"target": [math.inf]}, "infinite")],
)
def test_impossible_input_is_refused(change, says):
    columns = {"ts_ns": [0], "bid": [1], "ask": [2], "target": [1]}
    with pytest.raises(InputError, match=says):
        one(**(columns | change))


def test_compute_times_are_drawn_as_they_were_measured(tmp_path):
    times = np.concatenate([np.full(900, 20_000), np.full(95, 100_000), np.full(5, 3_000_000)])
    histogram = Histogram.of(times, "by hand")
    histogram.save(tmp_path / "h.json")
    again = Histogram.load(tmp_path / "h.json")
    drawn = again.draw(100_000, seed=7)
    assert again.source == "by hand" and again.counts.sum() == 1000
    assert np.array_equal(drawn, histogram.draw(100_000, seed=7))
    assert np.array_equal(drawn[:10], again.draw(10, seed=7))
    assert not np.array_equal(drawn, again.draw(100_000, seed=8))
    assert abs((drawn < 30_000).mean() - 0.9) < 0.01 and 0.002 < (drawn > 2_000_000).mean() < 0.008
    assert drawn.min() > 18_000 and drawn.max() < 3_500_000
    assert 20_000 < histogram.quantile_ns(0.5) < 22_000 and histogram.quantile_ns(0.999) > 3_000_000


def test_buckets_rise_and_hold_every_time():
    edges = edges_ns()
    assert edges[0] == 0 and (np.diff(edges) > 0).all()
    assert Histogram.of(np.array([0, 1, 1 << 60])).counts.sum() == 3


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"edges_ns": [1], "counts": []}', '{"edges_ns": [1, 0], "counts": [1]}',
             '{"edges_ns": [0, 1], "counts": [0]}', '{"edges_ns": [0, 1], "counts": [1, 2]}']
)  # fmt: skip
def test_a_damaged_histogram_is_refused(text, tmp_path):
    (tmp_path / "h.json").write_text(text)
    with pytest.raises(InputError, match="no histogram"):
        Histogram.load(tmp_path / "h.json")
    with pytest.raises(InputError, match="cannot be read"):
        Histogram.load(tmp_path / "none.json")


def test_measure_counts_the_calls_after_the_warm_ones():
    seen = []
    assert measure(seen.append, n=20, warm=5).counts.sum() == 20
    assert seen == list(range(25))

"""The kernel of windows against the oracle, and against figures worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings

from streamai import (
    CLICK,
    CLICKS,
    MARKET,
    QUOTE,
    TRADE,
    VIEW,
    FeatureView,
    compile_views,
    count,
    deviation_bp,
    difference,
    distinct,
    ewm,
    ewm_var,
    first,
    last,
    log_ratio,
    maximum,
    mean,
    microprice,
    mid,
    minimum,
    ofi,
    queue_imbalance,
    rate,
    ratio,
    realised_vol,
    signed_size,
    since_last,
    spread_bp,
    std,
    total,
    trade_imbalance,
    var,
    vwap,
)
from streamai.kernels import windows
from tests import reference, strategies
from tests.reference import Event
from tests.strategies import SECOND, START

NAN = math.nan
WINDOWS = {
    "unbounded": {},
    "sawtooth": {"window": "1m"},
    "hops": {"window": "50s", "hops": 7},
    "hop": {"window": "30s", "hops": 1},
    "exact": {"window": "1m", "exact": True, "max": 8},
    "roomy": {"window": "1m", "exact": True},
    "last": {"last": 5},
    "newest": {"last": 1},
    "session": {"session": "20s"},
    "tumbling": {"tumbling": "1m"},
    "decayed": {"half_life": "30s"},
}
UNDECAYED = [w for w in WINDOWS if w != "decayed"]
RATED = ["sawtooth", "hops", "exact", "tumbling", "decayed"]
SKETCHED = ["unbounded", "sawtooth", "hops", "session", "tumbling"]


def view_of(schema, features):
    body = {"source": schema.name, "key": schema.key, **features}
    return type("Made", (FeatureView,), body)


def run(plan, events, cells=None):
    """f4[n, F]: the features of every event, one after the other through the kernel."""
    cells = np.zeros(plan.cells) if cells is None else cells
    x, out, newest = np.full(plan.scratch, -9.0), np.full((len(events), len(plan.names)), -9, "f4"), 0
    tables = plan.derived, plan.derived_p, plan.acc, plan.acc_p, plan.out, plan.out_p
    for e, row in zip(events, out):
        columns, item = np.array(e.columns, "f8"), np.uint64(e.item_hash)
        windows.update(*tables, cells, cells.view("i8"), e.t, newest, e.kind, item, columns, x, row)
        newest = max(newest, e.t)
    return out


def compare(view, schema, events):
    plan = compile_views([view], schema)
    for i, (got, want) in enumerate(zip(run(plan, events), reference.features(view, events, schema))):
        for name, a in zip(plan.names, got):
            b = want[name]
            same = math.isnan(a) and math.isnan(b) or math.isclose(a, b, rel_tol=2e-6, abs_tol=1e-6)
            assert same, f"{name} at event {i} of {len(events)}: kernel {a}, oracle {b}"


COLUMN = view_of(
    CLICKS,
    {
        f"{name}_{w}": make("price", **options)
        for w, options in WINDOWS.items()
        for name, make in [
            ("total", total),
            ("mean", mean),
            ("var", var),
            ("std", std),
            ("minimum", minimum),
            ("maximum", maximum),
            ("first", first),
            ("last", last),
        ]  # fmt: skip
        if w in UNDECAYED or make in (total, mean, var, std)
    },
)
COUNTS = view_of(
    CLICKS,
    {f"count_{w}": count(**o) for w, o in WINDOWS.items()}
    | {f"clicks_{w}": count(kind=CLICK, **o) for w, o in WINDOWS.items()}
    | {f"priced_{w}": count(of="price", kind=(VIEW, "click"), **o) for w, o in WINDOWS.items()}
    | {f"rate_{w}": rate(kind="click", **WINDOWS[w]) for w in RATED}
    | {f"items_{w}": distinct(bits=64, **WINDOWS[w]) for w in SKETCHED}
    | {f"prices_{w}": distinct(of="price", bits=128, kind=VIEW, **WINDOWS[w]) for w in SKETCHED}
    | {"idle": since_last(), "since_click": since_last(kind=CLICK)},
)
TASTE = view_of(
    CLICKS,
    {
        "taste": ewm("price", half_life="20s"),
        "taste_by_time": ewm("price", half_life="20s", adjust=False, kind=VIEW),
        "taste_var": ewm_var("price", half_life="20s"),
        "share": ratio(count("1m", kind=VIEW), count("1m")),
        "gain": difference(last("price"), first("price")),
        "above": deviation_bp(last("price"), maximum("price", "1m")),
        "log": log_ratio("price", "quantity"),
    },
)
PRICES = view_of(
    MARKET,
    {
        f"{name}_{w}": make(**options)
        for w, options in WINDOWS.items()
        for name, make in [("vwap", vwap), ("trades", trade_imbalance), ("vol", realised_vol), ("ofi", ofi)]
    },
)
BOOK = view_of(
    MARKET,
    {
        "mid": mid(),
        "spread": spread_bp(),
        "imbalance": queue_imbalance(),
        "micro": microprice(),
        "signed": total(signed_size(), last=4),
        "ofi_quotes": ofi("1m", kind=QUOTE),
        "ofi_norm": ofi(last=10, normalised=True),
        "vol_trades": realised_vol("1m", of="price", kind=TRADE),
        "mid_var": var(mid(), "1m"),
    },
)


@pytest.mark.parametrize(
    ("view", "schema"),
    [(COLUMN, CLICKS), (COUNTS, CLICKS), (TASTE, CLICKS), (PRICES, MARKET), (BOOK, MARKET)],
    ids=["column", "counts", "taste", "prices", "book"],
)
def test_kernel_is_the_oracle(view, schema):
    @settings(max_examples=40, deadline=None)
    @given(strategies.events(schema))
    def check(events):
        compare(view, schema, events)

    check()


@settings(max_examples=60, deadline=None)
@given(strategies.events(CLICKS, most=40))
def test_overflow_is_counted(events):
    view = view_of(CLICKS, {"views": count("1m", kind=VIEW, exact=True, max=3), "all": count("1m")})
    plan, cells = compile_views([view], CLICKS), None
    cells = np.zeros(plan.cells)
    run(plan, events, cells)
    want = reference.overflow(view.features["views"], events, CLICKS)
    assert plan.overflow(cells.view("i8")) == {"views": want}


def test_long_run_wraps_every_ring():
    """2,000 events: rings and hops go round many times."""
    rng = np.random.default_rng(5)
    t, events = START, []
    for _ in range(2000):
        t += int(rng.exponential(3 * SECOND))
        late = int(rng.integers(0, 20 * SECOND)) if rng.random() < 0.1 else 0
        columns = tuple(rng.integers(0, 99, 3) / 8)
        events.append(Event(t - late, int(rng.integers(1, 5)), int(rng.integers(1, 99)), columns))
    plan = compile_views([COLUMN], CLICKS)
    got = run(plan, events)
    for i in range(0, 2000, 97):
        want = {n: reference.value(f, events[: i + 1], CLICKS) for n, f in COLUMN.features.items()}
        for name, a in zip(plan.names, got[i]):
            assert a == pytest.approx(want[name], rel=2e-6, abs=1e-6), f"{name} at {i}"


def market(t_s, bid=NAN, ask=NAN, bid_size=NAN, ask_size=NAN, price=NAN, size=NAN, side=NAN, kind=QUOTE):
    return Event(START + int(t_s * SECOND), kind, 0, (bid, ask, bid_size, ask_size, price, size, side))


def column_of(view, schema, events, name):
    plan = compile_views([view], schema)
    return run(plan, events)[:, plan.names.index(name)].tolist()


def test_order_flow_by_hand():
    """Cont, Kukanov and Stoikov's e_n, one rule after the other."""
    view = view_of(MARKET, {"ofi": ofi()})
    events = [
        market(0, 100, 101, 10, 20),  # the first book says nothing: 0
        market(1, 100, 101, 15, 20),  # five more on the bid: +15 - 10 - 20 + 20 = 5
        market(2, 100, 101, 15, 12),  # eight fewer on the ask: +8
        market(3, 100.5, 101, 7, 12),  # bid up: all of the new bid, +7
        market(4, 100.5, 100.75, 7, 9),  # ask down: all of the new ask, -9
        market(5, 100, 100.75, 30, 9),  # bid down: what was on the old one, -7
        market(6, 100, 101, 30, 40),  # ask up: what was on the old one, +9
        market(7, price=101, size=5, side=1, kind=TRADE),  # no book: no flow
    ]
    assert column_of(view, MARKET, events, "ofi") == [0, 5, 13, 20, 11, 4, 13, 13]


def test_vwap_and_trade_imbalance_by_hand():
    view = view_of(MARKET, {"vwap": vwap(last=2), "trades": trade_imbalance("1m", exact=True), "all": vwap()})
    events = [
        market(0, 100, 101, 1, 1),
        market(1, price=100, size=10, side=1, kind=TRADE),
        market(2, price=103, size=20, side=-1, kind=TRADE),
        market(3, price=101, size=20, side=1, kind=TRADE),
        market(61, price=101, size=0, side=1, kind=TRADE),
    ]
    assert column_of(view, MARKET, events, "vwap") == pytest.approx([NAN, 100, 102, 102, 101], nan_ok=True)
    want = [NAN, 1, (10 - 20) / 30, 10 / 50, 0]  # at 61 s the trade of 1 s has just gone
    assert column_of(view, MARKET, events, "trades") == pytest.approx(want, nan_ok=True)
    assert column_of(view, MARKET, events, "all")[-1] == pytest.approx((1000 + 2060 + 2020) / 50)


def test_microprice_leans_to_the_thin_side():
    view = view_of(MARKET, {"micro": microprice(), "bp": deviation_bp(microprice(), mid())})
    events = [market(0, 100, 102, 30, 10), market(1, 100, 102, 0, 0)]
    assert column_of(view, MARKET, events, "micro") == [101.5, 101.5]  # an empty book leaves the last known
    assert column_of(view, MARKET, events, "bp")[0] == pytest.approx(1e4 * 0.5 / 101)


def test_realised_vol_by_hand():
    view = view_of(MARKET, {"vol": realised_vol("1m", exact=True)})
    events = [market(0, 99, 101, 1, 1), market(10, 100, 102, 1, 1), market(70, 100, 102, 1, 1)]
    up = math.log(101 / 100)
    assert column_of(view, MARKET, events, "vol") == pytest.approx([0, up, 0])


def test_variance_keeps_its_digits():
    """100,000 +- 0.001: sums of squares would leave nothing."""
    rng = np.random.default_rng(1)
    prices = 1e5 + rng.normal(0, 1e-3, 500)
    options = {"all": {}, "saw": {"window": "1m"}, "exact": WINDOWS["roomy"], "last": {"last": 50}}
    view = view_of(CLICKS, {w: var("price", **o) for w, o in options.items()})
    plan = compile_views([view], CLICKS)
    events = [Event(START + i * SECOND, VIEW, 0, (p, NAN, NAN)) for i, p in enumerate(prices)]
    got = run(plan, events)[-1]
    assert got[plan.names.index("all")] == pytest.approx(prices.var(), rel=1e-4)
    hop = 3.75  # seconds: the sawtooth window reaches back to the start of a hop
    oldest = int(np.ceil(((START / SECOND + 499) // hop - 16) * hop - START / SECOND))
    assert got[plan.names.index("saw")] == pytest.approx(prices[oldest:].var(), rel=1e-4)
    assert got[plan.names.index("exact")] == pytest.approx(prices[-60:].var(), rel=1e-4)
    assert got[plan.names.index("last")] == pytest.approx(prices[-50:].var(), rel=1e-4)


def test_a_huge_value_leaves_no_trace_behind():
    """1e17 comes and goes: a running sum with subtraction would keep its rounding for ever."""
    options = [{"last": 3}, {"window": "10s", "exact": True}, {"window": "10s", "hops": 2}]
    view = view_of(CLICKS, {f"w{j}": total("price", **o) for j, o in enumerate(options)})
    prices = [1.0, 1e17, 1.0, 1.0, 1.0, 1.0]
    events = [Event(START + i * 20 * SECOND, VIEW, 0, (p, NAN, NAN)) for i, p in enumerate(prices)]
    assert run(compile_views([view], CLICKS), events)[-1].tolist() == [3, 1, 1]


def test_distinct_is_near_the_truth():
    view = view_of(CLICKS, {"items": distinct()})
    rng = np.random.default_rng(2)
    items = rng.integers(1, 2**32, 300, dtype="u8")
    events = [Event(START + i, VIEW, int(items[i % 300] | 1), (NAN,) * 3) for i in range(600)]
    assert run(compile_views([view], CLICKS), events)[-1, 0] == pytest.approx(300, rel=0.08)


def test_half_open_windows():
    """(t - w, t]: an event exactly one window old is out."""
    view = view_of(CLICKS, {"exact": count("10s", exact=True), "session": count(session="10s")})
    events = [Event(START + s * SECOND, VIEW, 0, (NAN,) * 3) for s in (0, 9, 10, 20)]
    assert column_of(view, CLICKS, events, "exact") == [1, 2, 2, 1]
    assert column_of(view, CLICKS, events, "session") == [1, 2, 3, 1]


def test_an_older_event_joins_the_newest_session_or_none():
    view = view_of(CLICKS, {"session": count(session="10s"), "interval": count(tumbling="1m")})
    events = [Event(START + s * SECOND, VIEW, 0, (NAN,) * 3) for s in (100, 90, 91, 85, 104, 72)]
    assert column_of(view, CLICKS, events, "session") == [1, 1, 2, 3, 4, 4]
    assert START % (60 * SECOND) == 20 * SECOND  # so that a minute begins at 100
    assert column_of(view, CLICKS, events, "interval") == [1, 1, 1, 1, 2, 2]


def test_same_bits_whenever_the_state_is_moved():
    """The cells are the whole state: copied away and back between any two events, nothing changes."""
    rng = np.random.default_rng(3)
    events = [
        Event(START + int(t), int(rng.integers(1, 5)), int(rng.integers(1, 9)), tuple(rng.normal(9, 1, 3)))
        for t in np.cumsum(rng.exponential(2e9, 300))
    ]
    plan = compile_views([COLUMN, COUNTS, TASTE], CLICKS)
    whole = run(plan, events)
    cells, parts, newest = np.zeros(plan.cells), [], 0
    for e in events:
        cells = np.frombuffer(cells.tobytes()).copy()
        x, row = np.full(plan.scratch, NAN), np.full(len(plan.names), NAN, "f4")
        tables = plan.derived, plan.derived_p, plan.acc, plan.acc_p, plan.out, plan.out_p
        at = e.t, newest, e.kind, np.uint64(e.item_hash), np.array(e.columns, "f8")
        windows.update(*tables, cells, cells.view("i8"), *at, x, row)
        newest = e.t
        parts.append(row)
    assert np.array(parts).tobytes() == whole.tobytes()

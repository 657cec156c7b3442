"""Declarations: what is refused at import and in which words; what a plan's digest and bytes say."""

import re
import subprocess
import sys

import numpy as np
import pytest

from features.clicks import ItemClicks, UserClicks
from features.market import Book
from streamai import (
    CLICK,
    CLICKS,
    MARKET,
    VIEW,
    FeatureView,
    compile_views,
    count,
    distinct,
    ewm,
    last,
    maximum,
    mean,
    mid,
    ratio,
    realised_vol,
    total,
    var,
    vwap,
)
from streamai import sum as sum_
from streamai.declaration import duration_ns
from streamai.errors import DeclarationError
from streamai.events import VIEW as VIEW_NUMBER
from streamai.events import Column, Schema
from streamai.feature import Window


def view(schema=CLICKS, name="Made", **features):
    return type(name, (FeatureView,), {"source": schema.name, "key": schema.key, **features})


def plan(schema=CLICKS, **features):
    return compile_views([view(schema, **features)], schema)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"x": lambda: mean("dwel_ms", "5m")}, "clicks has no column 'dwel_ms'; did you mean 'dwell_ms'?"),
        ({"x": lambda: count("5m", kind="clik")}, "Made.x: clicks has no kind 'clik'; did you mean 'click'?"),
        ({"x": lambda: count("5m", kind=9)}, "no kind 9 (it has 1 (view), 2 (click), 3 (cart), 4 (buy))"),
        ({"x": lambda: mid()}, "Made.x: clicks has no column 'bid'"),
        ({"x": lambda: ratio(count("5m"), vwap("1m", price="prize"))}, "clicks has no column 'prize'"),
        ({"x": lambda: count("5 minutes")}, "duration '5 minutes': write a whole number and one of us, ms"),
        ({"x": lambda: count("0m")}, "duration '0m'"),
        ({"x": lambda: count(5)}, "duration 5"),
        ({"x": lambda: count("5m", session="1h")}, "window '5m' and session are two windows; give one"),
        ({"x": lambda: count(last=3, half_life="1h")}, "last and half_life are two windows"),
        ({"x": lambda: count("5m", exakt=True)}, "unknown option ['exakt']"),
        ({"x": lambda: count("5m", max=9)}, "max= belongs to exact=True"),
        ({"x": lambda: count("5m", exact=True, hops=4)}, "a window is exact=True or has hops=, not both"),
        ({"x": lambda: count(exact=True)}, 'exact= and hops= belong to a window such as "5m"'),
        ({"x": lambda: count(last=0)}, "last=0; give a whole number from 1"),
        ({"x": lambda: maximum("price", half_life="1h")}, "not kept in a window of kind 'decayed'"),
        ({"x": lambda: distinct(last=9)}, "distinct is not kept in a window of kind 'exact'"),
        ({"x": lambda: distinct("1h", bits=100)}, "bits=100; give a power of two"),
        ({"x": lambda: ratio(1, count())}, "ratio: 1 is neither a feature nor a column"),
        ({"x": lambda: count}, "Made.x: write count(...)"),
        ({}, "Made: no feature in the class body"),
    ],
)
def test_what_cannot_work_is_refused_at_import(features, words):
    with pytest.raises(DeclarationError, match=re.escape(words)):
        view(**{name: make() for name, make in features.items()})


def test_source_and_key_are_checked():
    with pytest.raises(DeclarationError, match="one of .'clicks', 'market'. or a Schema; it is 'klicks'"):
        type("V", (FeatureView,), {"source": "klicks", "key": "user_id", "x": count()})
    with pytest.raises(DeclarationError, match="one of .'user_id', 'item_id'. for clicks; it is 'user'"):
        type("V", (FeatureView,), {"source": "clicks", "key": "user", "x": count()})
    with pytest.raises(DeclarationError, match="market has no items to count"):
        view(MARKET, x=distinct("1h"))


def test_a_misspelt_feature_is_a_name_error():
    with pytest.raises(NameError):

        class Wrong(FeatureView):
            source = "clicks"
            key = "user_id"
            views = count("5m")
            share = ratio(view_s, views)  # noqa: F821


def test_a_schema_of_ones_own():
    taxi = Schema("taxi", "driver", None, {"ride": 1}, (Column("fare"),))

    class Rides(FeatureView):
        source = taxi
        key = "driver"
        fares = total("fare", "1d")

    assert Rides.source == "taxi"
    assert compile_views([Rides], taxi).names == ("fares",)


def test_the_same_meaning_has_the_same_digest():
    a = plan(
        x=count("5m", kind=VIEW), y=mean("price", half_life="60m"), z=ratio(count("5m", kind=VIEW), count())
    )
    b = plan(
        x=count("300s", kind="view"), y=ewm("price", half_life="1h"), z=ratio(count("5m", kind=(1,)), count())
    )
    assert a.digest == b.digest
    assert re.fullmatch("[0-9a-f]{16}", a.digest)
    named = compile_views([view(name="Other", x=count())], CLICKS)
    assert named.digest == plan(x=count()).digest  # the view's own name says nothing
    assert plan(x=total("price")).digest == plan(x=sum_("price")).digest


@pytest.mark.parametrize(
    "other",
    [
        {"x": count("6m", kind=VIEW)},
        {"x": count("5m", kind=CLICK)},
        {"x": count("5m")},
        {"x": count("5m", kind=VIEW, hops=8)},
        {"x": count("5m", kind=VIEW, exact=True)},
        {"x": count("5m", kind=VIEW, of="price")},
        {"y": count("5m", kind=VIEW)},
        {"x": count("5m", kind=VIEW), "y": count()},
    ],
)
def test_another_meaning_has_another_digest(other):
    assert plan(**other).digest != plan(x=count("5m", kind=VIEW)).digest


def test_windows_are_kept_once():
    both = plan(n=count("5m", of="price"), m=mean("price", "5m"), s=total("price", "5m"))
    assert both.cells == plan(m=mean("price", "5m")).cells
    assert both.bytes_of()["m"] == both.bytes_of()["s"] == 0
    assert sum(both.bytes_of().values()) == 8 * both.cells
    shared = count("5m")
    twice = compile_views([view(name="A", x=shared), view(name="B", x=shared, y=count("1m"))], CLICKS)
    assert twice.names == ("A.x", "B.x", "y")
    assert len(twice.acc) == 2


def test_a_feature_does_not_depend_on_its_neighbours():
    """The mean beside a variance is made of the same cells as the mean alone."""
    a, b = plan(m=mean("price", "5m")), plan(m=mean("price", "5m"), v=var("price", "5m"))
    assert np.array_equal(a.acc[0, :3], b.acc[0, :3])
    assert a.out[0, 0] == b.out[0, 0]


def test_tail_steps_are_stated():
    made = plan(
        a=count("5m"), b=count("5m", exact=True), c=ratio(count("1h", hops=6), count("5m")), d=count()
    )
    assert made.tail_step_ns == (18_750_000_000, 0, 600_000_000_000, 0)


def test_hidden_inputs_are_no_features():
    made = plan(_all=count(), share=ratio(count(kind=VIEW), count()))
    assert made.names == ("share",)


def test_plans_are_of_one_key():
    item = type("Items", (FeatureView,), {"source": "clicks", "key": "item_id", "n": count()})
    assert compile_views([item], CLICKS).key == "item_id"
    with pytest.raises(DeclarationError, match="one plan is for one key"):
        compile_views([item, view(x=count())], CLICKS)


def test_no_view_is_an_empty_plan():
    empty = compile_views([], CLICKS)
    assert (empty.cells, empty.names, empty.key, empty.scratch) == (0, (), "user_id", 3)


def test_durations():
    assert [duration_ns(t) for t in ("1us", "250ms", "2s", "5m", "24h", "7d")] == [
        10**3, 25 * 10**7, 2 * 10**9, 300 * 10**9, 86400 * 10**9, 7 * 86400 * 10**9,
    ]  # fmt: skip
    assert count("5m").window == Window("sawtooth", 300 * 10**9, 16)
    assert VIEW_NUMBER == VIEW


def test_shipped_views_are_moderate():
    sizes = {v.__name__: compile_views([v], v.schema).cells * 8 for v in (UserClicks, ItemClicks, Book)}
    assert sizes["UserClicks"] <= 1200
    assert sizes["ItemClicks"] <= 200
    assert sizes["Book"] <= 3000


def test_declaring_needs_no_compiler():
    code = "import sys, features.clicks, features.market; print('numba' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_realised_vol_of_trades_follows_trades_only():
    quotes, trades = (realised_vol("1m", of="price", kind=k) for k in ("quote", "trade"))
    made = plan(MARKET, q=quotes, t=trades, again=last("price"))
    assert len(made.derived) == 4  # a return and its square for each kind

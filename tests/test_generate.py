"""The made events: repeatable, well-formed, in the order and with the structure that the README states."""

import csv
import json
import pathlib
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest

from replay_data import generate as g
from streamai import cli
from streamai.events import SCHEMAS

HERE = pathlib.Path(g.__file__).parent


@pytest.fixture(scope="module")
def clicks():
    return g.stream_clicks(20_000, seed=3)


@pytest.fixture(scope="module")
def market():
    return g.stream_market(20_000, seed=3)


def equal(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f") for k in a
    )


def test_a_seed_repeats_and_another_differs(clicks, market):
    assert equal(clicks, g.stream_clicks(20_000, seed=3))
    assert equal(market, g.stream_market(20_000, seed=3))
    assert not equal(clicks, g.stream_clicks(20_000, seed=4))
    assert not equal(market, g.stream_market(20_000, seed=4))


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_any_count_is_met(n):
    assert {len(c) for c in g.stream_clicks(n, seed=1).values()} == {n}
    assert {len(c) for c in g.stream_market(n, seed=1).values()} == {n}


@pytest.mark.parametrize("name", ["clicks", "market"])
def test_columns_are_the_schema_and_obey_its_rules(name, request):
    schema, table = SCHEMAS[name], request.getfixturevalue(name)
    named = [schema.key, *([schema.item] if schema.item else []), "kind", "event_ts_ns"]
    assert set(table) == {*named, *(c.name for c in schema.columns)}
    assert set(table["kind"]) == set(schema.kinds)
    for c in schema.columns:
        value = table[c.name][~np.isnan(table[c.name])]
        assert len(value) and np.isfinite(value).all()
        if c.rule == "positive":
            assert (value > 0).all()
        if c.rule == "non_negative":
            assert (value >= 0).all()
        if c.rule == "sign":
            assert set(value) <= {-1.0, 0.0, 1.0}
    if schema.crossed:
        assert (table["bid"] < table["ask"]).all()


@pytest.mark.parametrize("name,key", [("clicks", "user_id"), ("market", "instrument")])
def test_times_rise_in_a_key_and_nearly_between_keys(name, key, request):
    table = request.getfixturevalue(name)
    ts_ns = table["event_ts_ns"]
    behind = np.maximum.accumulate(ts_ns) - ts_ns
    assert 0 < behind.max() < 1_000_000_000
    for k in set(table[key]):
        assert (np.diff(ts_ns[table[key] == k]) >= 0).all()
    year_ns = np.array(["2026-01-01", "2027-01-01"], "M8[ns]").astype(np.int64)
    assert year_ns[0] < ts_ns.min() and ts_ns.max() < year_ns[1]


def test_the_last_item_says_more_than_popularity(clicks):
    """Fitted as it comes, judged on the second half: hit rate of ten guesses."""
    last, after, popular, hits, judged = {}, defaultdict(Counter), Counter(), Counter(), 0
    for i, (user, item) in enumerate(zip(clicks["user_id"], clicks["item_id"])):
        if user in last and i > 10_000:
            judged += 1
            hits["popular"] += item in [x for x, _ in popular.most_common(10)]
            hits["after"] += item in [x for x, _ in after[last[user]].most_common(10)]
        after[last.get(user)][item] += 1
        popular[item] += 1
        last[user] = item
    assert hits["after"] > 3 * hits["popular"] > 0.1 * judged


def test_order_flow_holds_the_planted_signal(market):
    """Rank correlation of decayed order flow with the mid's move over the next second, one instrument."""
    own = market["instrument"] == "BRVO"
    ts_ns, side = market["event_ts_ns"][own], market["side"][own]
    push = np.where(market["kind"][own] == "cancel", -side, side)
    mid = (market["bid"][own] + market["ask"][own]) / 2
    flow, level = np.zeros(len(push)), 0.0
    for i in range(len(push)):
        level = level * 0.5 ** ((ts_ns[i] - ts_ns[max(i - 1, 0)]) / 5e8) + push[i]
        flow[i] = level
    later = np.searchsorted(ts_ns, ts_ns + 1_000_000_000, side="right") - 1
    whole = later < len(ts_ns) - 1
    rank = [np.argsort(np.argsort(v[whole])) for v in (flow, mid[later] - mid)]
    assert np.corrcoef(rank)[0, 1] > 0.3


def test_catalogue_titles_are_distinct_and_events_refer_to_it(clicks):
    items = g.items()
    assert len(set(items["id"])) == len(set(items["title"])) == g.N_ITEMS >= 500
    assert len(set(items["category"])) >= 12
    assert min(items["price"]) > 0
    assert set(clicks["item_id"]) <= set(items["id"])


def test_the_committed_files_are_what_the_generator_makes(tmp_path):
    made = g.generate(out=tmp_path)
    for name in ("clicks", "market"):
        assert pl.read_parquet(HERE / f"{name}.parquet").equals(pl.read_parquet(made[name]))
    with (HERE / "items.csv").open(encoding="utf-8") as a, made["items"].open(encoding="utf-8") as b:
        assert list(csv.reader(a)) == list(csv.reader(b))


def test_command_writes_the_files_and_says_where(tmp_path, capsys):
    counts = ["--clicks", "50", "--market", "60", "--seed", "5"]
    assert cli.main(["generate", *counts, "--out", str(tmp_path), "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)
    assert pl.read_parquet(paths["clicks"]).height == 50
    assert pl.read_parquet(paths["market"]).height == 60
    prices = pl.read_parquet(paths["market"])["price"].to_list()
    assert prices == g.stream_market(60, seed=5)["price"].tolist()
    with pytest.raises(SystemExit) as wrong:
        cli.main(["generate", "--clicks", "-1"])
    assert wrong.value.code == 2

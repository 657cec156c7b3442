"""The inverted file: what it finds, against the whole table; its file; the engine that uses it by itself."""

import json

import numpy as np
import pytest

from features.clicks import UserClicks
from streamai.catalogue import Catalogue
from streamai.cli import main
from streamai.engine import Engine
from streamai.errors import ModelError
from streamai.flow import Flow
from streamai.kernels import ivf
from streamai.kernels.request import FEW_INDEXED
from streamai.model import index, tables, weights
from tests.made import click_values
from tests.test_request import asks, feed, user_of

N, D = 6000, 16


def table(seed: int = 0, n: int = N):
    """A clustered item table with biases, as `tables.arrays_of` hands it over."""
    r = np.random.default_rng(seed)
    middles = r.standard_normal((60, D))
    item = (middles[r.integers(0, 60, n)] + 0.4 * r.standard_normal((n, D))).astype("f4")
    bias = (0.3 * r.standard_normal(n)).astype("f4")
    known = (r.random(n) < 0.95).astype("u1")
    item[known == 0] = 0
    return {"item": item, "bias": bias, "known": known, "scannable": known & (r.random(n) < 0.9)}


def queries(seed: int = 1, m: int = 64):
    return (np.random.default_rng(seed).standard_normal((m, D)) * 2).astype("f4")


def best(arrays: dict, q: np.ndarray, k: int, live: np.ndarray) -> list[int]:
    """The oracle: every score, in float64."""
    s = arrays["item"].astype("f8") @ q.astype("f8") + arrays["bias"]
    s[live == 0] = -np.inf
    return np.argsort(-s, kind="stable")[:k].tolist()


@pytest.fixture(scope="module")
def made():
    arrays = table()
    known = np.flatnonzero(arrays["known"])
    groups, middle = index.cluster(arrays["item"][known], arrays["bias"][known], 1.0)
    list_of = np.full(N, -1, "i4")
    list_of[known] = groups
    kept = {"list_of": list_of, "middle": middle, "reach": 2.0, "probed": 5}
    return arrays, kept, index.placed(arrays, kept)


def test_every_item_has_its_place(made):
    arrays, kept, placed = made
    there = placed["ivf_item"] >= 0
    assert sorted(placed["ivf_item"][there]) == np.flatnonzero(arrays["known"]).tolist()
    for i in np.flatnonzero(arrays["known"])[::37]:
        p = placed["ivf_place"][i]
        start = placed["ivf_start"] * 16
        assert placed["ivf_item"][p] == i and placed["ivf_live"][p] == arrays["scannable"][i]
        assert start[kept["list_of"][i]] <= p < start[kept["list_of"][i] + 1]
    assert (placed["ivf_place"][arrays["known"] == 0] == -1).all()
    sizes = np.bincount(kept["list_of"][kept["list_of"] >= 0])
    assert sizes.min() > 0 and len(sizes) == index.lists_for(int(arrays["known"].sum()))


def test_all_lists_give_what_the_whole_table_gives(made):
    arrays, kept, placed = made
    search = index.Search(arrays, placed)
    for q in queries():
        got = search(q, 50, len(kept["middle"]))
        assert got.tolist() == best(arrays, q, 50, arrays["scannable"])


def test_some_lists_find_most_and_exclusions_hold(made):
    arrays, _, placed = made
    search = index.Search(arrays, placed)
    search.exclude[::3] = 1
    live = arrays["scannable"] & (search.exclude == 0)
    found, share = [], []
    for q in queries(2):
        got = search(q, 50, 8)
        want = best(arrays, q, 50, live)
        assert live[got].all()
        found.append(len(set(want) & set(got.tolist())) / 50)
        share.append(8 / len(placed["ivf_reach"]))
    assert np.mean(found) > 0.9 and np.mean(share) < 0.6


def test_items_go_and_come_in_place(made):
    arrays, kept, placed = made
    placed = {name: a.copy() for name, a in placed.items()}
    q = queries()[0]
    search = index.Search(arrays, placed)
    top = int(search(q, 1, 4)[0])
    placed["ivf_live"][placed["ivf_place"][top]] = 0
    assert top not in search(q, 50, len(kept["middle"]))
    placed["ivf_live"][placed["ivf_place"][top]] = 1
    assert search(q, 1, 4)[0] == top
    # an item that the table did not have: to its own list, or behind, and found either way
    more = {name: np.concatenate([a, a[:1]]) for name, a in arrays.items()}
    more["item"][N], more["bias"][N] = q, 0.0
    placed["ivf_place"] = np.append(placed["ivf_place"], np.int32(-1))
    far = int(np.argmin(kept["middle"] @ q))
    names = ("ivf_start", "ivf_item", "ivf_live", "ivf_place", "packed", "scale", "ivf_bias")
    free = int((placed["ivf_item"] < 0).sum())
    for _ in range(3):  # until the far list is full it goes there, where this query does not look
        assert ivf.add(q, 0.0, N, len(kept["middle"]), *(placed[name] for name in names))
    assert int((placed["ivf_item"] < 0).sum()) == free - 3
    assert index.Search(more, placed)(q, 1, 1)[0] == N and far >= 0
    full = dict(placed, ivf_item=np.zeros_like(placed["ivf_item"]))
    assert not ivf.add(q, 0.0, N, 0, *(full[name] for name in names))


def test_tuning_keeps_its_promise_on_other_queries(made):
    arrays, kept, _ = made
    everywhere = index.placed(arrays, kept | {"live": arrays["known"]})
    facts = index.tuned(arrays, everywhere, kept, queries(3, 200))
    assert facts["recall"] >= index.RECALL or facts["scanned"] >= 0.9 * index.SCANNED_MAX
    placed = index.placed(arrays, kept | facts | {"live": arrays["known"]})
    search = index.Search(arrays, placed)
    found = [
        len(set(best(arrays, q, 100, arrays["known"])) & set(search(q, 100, facts["probed"]).tolist()))
        for q in queries(4, 200)
    ]
    assert abs(np.mean(found) / 100 - facts["recall"]) < 0.03


def test_the_same_table_gives_the_same_lists():
    a, b = (index.cluster(table(5)["item"], table(5)["bias"], 1.0) for _ in range(2))
    assert a[0].tobytes() == b[0].tobytes() and a[1].tobytes() == b[1].tobytes()


def model_of(path, ids, seed=0, d=16):
    """A click model of random numbers for these ids, alike items beside each other."""
    r = np.random.default_rng(seed)
    layers, m, n = 1, 16, len(ids)

    def some(*shape):
        return (r.standard_normal(shape) / 4).astype("f4")

    middles = r.standard_normal((40, d))
    arrays = {
        "item": (middles[np.arange(n) * 40 // n] + 0.3 * r.standard_normal((n, d))).astype("f4"),
        "bias": some(n), "unknown": some(64, d), "kind_emb": some(8, d), "gap_emb": some(64, d),
        "Wside": some(0, d), "Wg": some(layers, d, 4 * d), "bg": some(layers, 4 * d),
        "cw": some(layers, 4, d), "cb": some(layers, d),
        "lam": abs(some(layers, d)), "gap_w": abs(some(layers, d)),
        "Wo": some(layers, d, d), "W1": some(layers, d, 2 * m), "W2": some(layers, m, d),
        "final_gain": np.ones(d, "f4"),
    }  # fmt: skip
    header = {"kind": "clicks", "d": d, "layers": layers, "mlp": m, "side": 0, "vocabulary": ids}
    weights.write(path, header, arrays)
    return path


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    values = click_values(800, seed=3)
    seen = sorted({json.loads(v)["item_id"] for v in values})
    ids = seen + [f"more-{i}" for i in range(5000 - len(seen))]
    path = model_of(tmp_path_factory.mktemp("large") / "large.weights", ids)
    price = [float(i % 7) for i in range(len(ids))]
    return Flow("large", "clicks", [UserClicks], catalogue=Catalogue(ids, price=price), model=path)


def test_the_engine_uses_it_by_itself_and_finds_what_the_scan_finds(flow):
    values = click_values(800, seed=3)
    scan, indexed = Engine(flow), Engine(flow.but(scan_max=1000))
    assert scan.table_arrays["ivf_start"].size == 0 < indexed.table_arrays["ivf_start"].size
    a, b = feed(scan, values), feed(indexed, values)
    same = [len(set(x["items"]) & set(y["items"])) / 10 for x, y in zip(a[100:], b[100:], strict=True)]
    assert np.mean(same) > 0.9
    for x in (b[-1], b[500]):
        assert len(x["items"]) == 10 == len(set(x["items"]))
    again = Engine(flow.but(scan_max=1000))
    assert feed(again, values, cut=7) == b  # the same lists, the same bits, for any cut


def test_a_filter_looks_into_every_list(flow):
    """What is asked for may lie anywhere: equal to the scan, bit for bit."""
    values = click_values(300, seed=3)
    user, answers = user_of(values[-1]), []
    for scan_max in (10_000, 1000):
        engine = Engine(flow.but(scan_max=scan_max))
        feed(engine, values)
        got = feed(engine, [asks(user, filters={"price": {"min": 1}}), asks(user)], 300)
        answers.append((got[0]["items"], got[0]["scores"]))
        assert len(got[1]["items"]) == 10
    assert answers[0] == answers[1]
    assert FEW_INDEXED < sum(p >= 1 for p in flow.catalogue.price) < 5000


def test_what_few_items_fulfil_is_ranked_one_and_all(flow):
    """Some 1,400 items: too many for a catalogue that is scanned, few enough for one that is indexed."""
    engine = Engine(flow.but(scan_max=1000))
    values = click_values(300, seed=3)
    feed(engine, values)
    answer = feed(engine, [asks(user_of(values[-1]), filters={"price": [3, 4]})], 300)[0]
    items, _, scores = engine.candidates()
    assert sorted(items) == [i for i, p in enumerate(flow.catalogue.price[:5000]) if p in (3, 4)]
    assert answer["items"] == [flow.catalogue.ids[items[j]] for j in np.lexsort((items, -scores))[:10]]


def test_its_file_is_used_where_it_is_of_this_table(flow, tmp_path, monkeypatch):
    path = tmp_path / "kept.weights"
    path.write_bytes(flow.model.read_bytes())
    flow = flow.but(model=path, scan_max=1000)
    values = click_values(200, seed=3)
    want = feed(Engine(flow), values)
    arrays = Engine(flow).table_arrays
    kept = index.build(arrays)
    mark = index.digest(arrays["item"], arrays["bias"], arrays["known"])
    index.write(index.file_of(path), kept, mark)
    assert index.digest(*(tables.items_of(flow)[0][name] for name in ("item", "bias", "known"))) == mark

    def never(_arrays):
        raise AssertionError("built although there is a file")

    build = index.build
    monkeypatch.setattr(index, "build", never)
    assert feed(Engine(flow), values) == want
    calls = []
    monkeypatch.setattr(index, "build", lambda a: calls.append(1) or build(a))
    more = Catalogue([*flow.catalogue.ids, "new"])  # another table: the file is not of it
    Engine(flow.but(catalogue=more))
    assert calls == [1]
    index.file_of(path).write_bytes(b"no index")
    with pytest.raises(ModelError, match="streamai index"):
        Engine(flow)


def test_the_command_writes_the_file_and_says_what_it_finds(flow, tmp_path, capsys):
    path, items = tmp_path / "kept.weights", tmp_path / "items.csv"
    path.write_bytes(flow.model.read_bytes())
    lines = [f"{i},{p}" for i, p in zip(flow.catalogue.ids, flow.catalogue.price, strict=False)]
    items.write_text("\n".join(["id,price", *lines]))
    words = ["index", "agents.recommend", "--model", str(path), "--items", str(items)]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["items"] == 5000 and facts["used"] is False
    assert facts["recall@100"] >= index.RECALL or facts["scanned"] > 0.9 * index.SCANNED_MAX
    assert index.facts(index.file_of(path))["recall@100"] == facts["recall@100"]
    assert main(words) == 0 and "not used" in capsys.readouterr().out

"""`streamai train` end to end on the made events, and its splits: no target is fed before it is asked for."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from replay_data import generate
from streamai import cli
from streamai.cli import train
from streamai.engine import Engine
from streamai.errors import InputError, ModelError
from streamai.events import CLICKS
from streamai.flow import load
from streamai.model import weights
from streamai.replay.read import conform, read_events
from streamai.train.head import Logged
from streamai.train.recommend import Options, moment, split
from streamai.train.recommend import train as train_clicks
from streamai.train.served import log_candidates

FLOW = SimpleNamespace(schema=CLICKS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Paths of 6,000 made clicks and 6,000 market events."""
    folder = tmp_path_factory.mktemp("made")
    generate.main(["--clicks", "6000", "--market", "6000", "--seed", "5", "--out", str(folder)])
    return folder


def trained(capsys, *args, d=16, layers=1):
    """The report of a run of the command."""
    sizes = ["--d", str(d), "--layers", str(layers)]
    code = cli.main(["train", *map(str, args), *sizes, "--epochs", "1", "--json"])
    assert code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("protocol", ["leave-one-out", "prequential"])
def test_train_recommend(made, tmp_path, capsys, protocol):
    out = tmp_path / "r.weights"
    report = trained(
        capsys,
        "agents.recommend",
        "--events",
        made / "clicks.parquet",
        "--out",
        out,
        "--protocol",
        protocol,
        "--no-refit",
    )
    file = weights.read(out)
    assert report["model"] == file.digest and file.header["heads"] == ["ranking"]
    assert file.header["metrics"]["protocol"] == protocol
    assert file.int8 and file.halves and file.header["metrics"]["kernel_difference"] < 0.01
    assert [r["step"] for r in report["compression"]][:2] == ["trained", "int8"]
    head = report["head"]
    assert head["with_target"] >= 20 and 0 <= head["plain_ndcg@10"] <= head["ndcg@10"] <= 1
    assert file.header["calibrated"] and (protocol == "leave-one-out" or "lm_again" not in report)
    engine = Engine(load("agents.recommend").but(model=out), rows_max=64)
    assert file.header["plan"] == engine.plan_digest
    assert len(file.arrays["feat_mean"]) == len(engine.feature_names)
    # another head on the same LM
    again = tmp_path / "again.weights"
    more = trained(
        capsys, "agents.recommend", "--events", made / "clicks.parquet", "--out", again, "--lm", out,
        "--protocol", protocol,
    )  # fmt: skip
    assert more["lm"]["taken_from"] == file.digest
    other = weights.read(again)
    for name in ("lam", "gap_w", "Wg_q", "Wo_q", "item_q"):
        assert abs(other.arrays[name] - file.arrays[name]).max() < 1e-5
    assert more["head"]["ndcg@10"] == pytest.approx(head["ndcg@10"], abs=1e-3)


def test_train_trade(made, tmp_path, capsys):
    out = tmp_path / "t.weights"
    report = trained(capsys, "agents.trade", "--events", made / "market.parquet", "--out", out)
    file = weights.read(out)
    flow = load("agents.trade")
    assert file.header["heads"] == ["signal"] and file.header["horizons"] == list(flow.horizons)
    assert set(report["signal"]["horizons"]) == set(flow.horizons)
    assert file.arrays["sig_W2"].shape[1] == 3 * len(flow.horizons)
    assert file.header["metrics"]["fitted_until_ns"] == moment(
        read_events(made / "market.parquet", flow.schema)["event_ts_ns"], 0.6
    )
    Engine(flow.but(model=out), rows_max=64)


def test_leave_one_out_feeds_no_target(made):
    table = read_events(made / "clicks.parquet", CLICKS)
    parts = split(table, FLOW, Options(protocol="leave-one-out"))
    lengths = Counter(table["user_id"])
    fed = Counter(parts.feed["user_id"])
    assert fed == {u: n - 2 for u, n in lengths.items() if n > 2}
    asked = [i for i, t in enumerate(parts.target) if t is not None]
    # every key is asked once, after all else has been fed
    assert len(asked) == len(fed) and asked == list(range(len(parts.target) - len(fed), len(parts.target)))
    mine = table.group_by("user_id", maintain_order=True).agg("item_id")
    items = dict(zip(mine["user_id"], mine["item_id"]))
    for i in asked:
        user = parts.feed["user_id"][i]
        assert parts.target[i] == [items[user][-2]] and parts.feed["item_id"][i] == items[user][-3]


def test_prequential_stays_before_its_end(made):
    table = read_events(made / "clicks.parquet", CLICKS)
    parts = split(table, FLOW, Options(protocol="prequential"))
    assert parts.until_ns == moment(table["event_ts_ns"], 0.6)
    assert parts.feed["event_ts_ns"].max() < parts.until_ns
    head_from = parts.lm["event_ts_ns"].max()
    # the second replay begins where the LM has seen nothing, and holds every target
    assert parts.feed["event_ts_ns"][parts.fresh] > head_from and not any(parts.target[: parts.fresh])
    last = {}
    for i in range(len(parts.target) - 1, -1, -1):
        user, item = parts.feed["user_id"][i], parts.feed["item_id"][i]
        if parts.target[i] is not None:
            # the next item is later in what was fed, and the LM has not seen this part
            assert parts.target[i][0] == last[user] and parts.feed["event_ts_ns"][i] > head_from
        last[user] = item


def test_what_the_head_learns_from_is_the_next_basket():
    rows = [("a", "1", 0), ("a", "2", 90), ("a", "3", 90), ("b", "7", 91), ("a", "4", 95), ("a", "5", 95),
            ("a", "6", 100), ("b", "8", 100)]  # fmt: skip
    users, items, seconds = zip(*rows)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "event_ts_s": [1_000_000 + s for s in seconds]})
    parts = split(conform(frame, CLICKS), FLOW, Options(protocol="all"))
    # a list is asked for after the last of a basket, and judged by all of the next one; what shares key and
    # time is no target; the first row lies before the head's part, the last baskets have none behind them
    assert parts.target == [None, None, ["4", "5"], ["8"], None, ["6"], None, None] and parts.fresh == 1


def test_rows_of_two_replays_lie_over_one_another():
    def logged(n, first):
        z = np.arange(first, first + n, dtype=np.float32)[:, None, None]
        return Logged(z, z, np.arange(n), np.arange(n), z[:, 0])

    both = logged(2, 0).beside(logged(4, 10))
    assert both.z[:, 0, 0].tolist() == [0, 10, 11, 1, 12, 13] == both.user[:, 0].tolist()


def test_the_lm_is_trained_again_up_to_the_end_once_the_head_has_learnt(made, tmp_path, capsys):
    args = ("agents.recommend", "--events", made / "clicks.parquet", "--out", tmp_path / "r.weights")
    report = trained(capsys, *args)
    file = weights.read(tmp_path / "r.weights")
    assert report["lm_again"]["events"] > report["lm"]["events"]
    assert file.header["metrics"]["lm_until_ns"] == file.header["metrics"]["fitted_until_ns"]
    # such an LM knows what a head would learn from
    again = SimpleNamespace(**{"lm": str(tmp_path / "r.weights")})
    table = read_events(made / "clicks.parquet", CLICKS)
    with pytest.raises(ModelError, match="--no-refit"):
        train_clicks(
            load("agents.recommend"), table, tmp_path / "x", Options(lm=again.lm), Console(quiet=True)
        )
    assert not (tmp_path / "x").exists()


def _logged_before(table, cut_ns):
    """What the head would learn from, of lists served before cut_ns and judged before it."""
    flow = load("agents.recommend").but(model=None)
    parts = split(table, FLOW, Options(protocol="all"))
    early = table["event_ts_ns"].to_numpy() < cut_ns
    target = [t if e else None for t, e in zip(parts.target, early)]
    got = log_candidates(flow, table, target, console=Console(quiet=True))
    return [a.tobytes() for a in (got.z, got.items, got.count, got.user)], len(got)


def test_what_the_head_learns_from_knows_no_future_and_a_planted_leak_is_seen(made):
    table = read_events(made / "clicks.parquet", CLICKS).head(3000)
    cut = int(table["event_ts_ns"][2900])
    late = pl.col("event_ts_ns") >= cut
    # another future: other items and prices, for the same keys at the same times
    other = table.with_columns(
        pl.when(late).then(pl.col("item_id").first()).otherwise("item_id").alias("item_id"),
        pl.when(late).then(pl.col("price") * 3).otherwise("price").alias("price"),
    )
    real, n = _logged_before(table, cut)
    assert n > 100 and real == _logged_before(other, cut)[0]
    # a leak: the future is fed before its time, for another key so that only what keys share knows of it
    leak = table.filter(late).with_columns(
        user_id=pl.lit("leak"), event_ts_ns=pl.lit(int(table["event_ts_ns"][0]))
    )
    assert real != _logged_before(pl.concat([leak, table]), cut)[0]


def test_until_and_all(made):
    table = read_events(made / "clicks.parquet", CLICKS)
    assert len(split(table, FLOW, Options(protocol="all")).feed) == len(table)
    assert len(split(table, FLOW, Options(until=0.3)).feed) < len(table) * 0.6


def test_errors_say_what_to_do(made, tmp_path):
    flow, quiet = load("agents.recommend"), Console(quiet=True)
    table = read_events(made / "clicks.parquet", CLICKS)
    with pytest.raises(InputError, match="--map"):
        train_clicks(flow, table.with_columns(user_id=pl.lit("")), tmp_path / "w", Options(), quiet)
    with pytest.raises(ModelError, match="leave-one-out"):
        train_clicks(flow, table.head(2), tmp_path / "w", Options(protocol="leave-one-out"), quiet)
    assert cli.main(["train", "agents.recommend", "--events", "x", "--out", "y", "--d", "20"]) == 2


def test_teach_ask_and_distil(made, tmp_path, capsys):
    """A teacher on two processes, its answers beside a student's own, and a student of both."""
    common = ["agents.recommend", "--events", made / "clicks.parquet", "--protocol", "leave-one-out"]
    report = trained(
        capsys, *common, "--teacher", "--out", tmp_path / "t", "--answers", tmp_path / "a", "--nproc", "2",
        "--parallel", "tensor", "--tune-epochs", "0", d=64, layers=2,
    )  # fmt: skip
    assert report["teacher"]["epochs"] == 1 and 0 < report["teacher"]["last_event"]["ndcg@10"] <= 1
    plain = trained(capsys, *common, "--no-head", "--out", tmp_path / "s.weights")
    both = trained(
        capsys, *common, "--of", tmp_path / "t", tmp_path / "s.weights", "--answers", tmp_path / "b"
    )
    assert set(both["teacher"]) == {str(tmp_path / "t"), str(tmp_path / "s.weights")}
    taught = trained(
        capsys, *common, "--no-head", "--distil", tmp_path / "b", "--out", tmp_path / "d.weights"
    )
    assert taught["compression"][0]["step"] == "distilled" and taught["model"] != plain["model"]
    assert set(taught["teacher"]) == set(both["teacher"])
    train.show(taught, Console(quiet=True))  # figures and names alike

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
from streamai.engine import Engine
from streamai.errors import InputError, ModelError
from streamai.events import CLICKS
from streamai.flow import load
from streamai.model import weights
from streamai.replay.read import conform, read_events
from streamai.train.head import Logged
from streamai.train.recommend import Options, moment, split
from streamai.train.recommend import train as train_clicks

FLOW = SimpleNamespace(schema=CLICKS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Paths of 6,000 made clicks and 6,000 market events."""
    folder = tmp_path_factory.mktemp("made")
    generate.main(["--clicks", "6000", "--market", "6000", "--seed", "5", "--out", str(folder)])
    return folder


def trained(capsys, *args):
    """The report of a run of the command."""
    code = cli.main(["train", *map(str, args), "--d", "16", "--layers", "1", "--epochs", "1", "--json"])
    assert code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("protocol", ["leave-one-out", "prequential"])
def test_train_recommend(made, tmp_path, capsys, protocol):
    out = tmp_path / "r.weights"
    report = trained(
        capsys, "agents.recommend", "--events", made / "clicks.parquet", "--out", out, "--protocol", protocol
    )
    file = weights.read(out)
    assert report["model"] == file.digest and file.header["heads"] == ["ranking"]
    assert file.header["metrics"]["protocol"] == protocol
    assert file.int8 and file.halves and file.header["metrics"]["kernel_difference"] < 0.01
    assert [r["step"] for r in report["compression"]][:2] == ["trained", "int8"]
    head = report["head"]
    assert head["rows"] - head["skipped"] >= 20 and 0 <= head["ndcg@10"] <= 1
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
        assert parts.target[i] == items[user][-2] and parts.feed["item_id"][i] == items[user][-3]


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
            assert parts.target[i] == last[user] and parts.feed["event_ts_ns"][i] > head_from
        last[user] = item


def test_what_the_head_learns_from_is_the_next_basket():
    rows = [("a", "1", 0), ("a", "2", 90), ("a", "3", 90), ("b", "7", 91), ("a", "4", 95), ("a", "5", 95),
            ("a", "6", 100), ("b", "8", 100)]  # fmt: skip
    users, items, seconds = zip(*rows)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "event_ts_s": [1_000_000 + s for s in seconds]})
    table = conform(frame, CLICKS)
    drawn = set()
    for seed in range(20):
        parts = split(table, FLOW, Options(protocol="all"), seed)
        # what shares key and time is no target; the first row lies before the head's part
        assert parts.target[0] is None and parts.target[3:] == ["8", "6", "6", None, None]
        assert parts.target[1] == parts.target[2] and parts.fresh == 1
        drawn.add(parts.target[1])
    assert drawn == {"4", "5"}


def test_rows_of_two_replays_lie_over_one_another():
    def logged(n, first):
        z = np.arange(first, first + n, dtype=np.float32)[:, None, None]
        return Logged(z, np.arange(n), np.arange(n), z[:, 0])

    both = logged(2, 0).beside(logged(4, 10))
    assert both.z[:, 0, 0].tolist() == [0, 10, 11, 1, 12, 13] == both.user[:, 0].tolist()


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

"""History through the engine: cuts, partitions, tiers, dead and late events, tables."""

import json

import numpy as np
import polars as pl
import pytest

from features.clicks import ItemClicks, UserClicks
from streamai import cli
from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.errors import InputError
from streamai.events import CLICKS
from streamai.flow import Flow
from streamai.replay.record import RECORD, TableWriter
from streamai.replay.run import recorded_tiers, replay
from streamai.replay.table import compute_view, replay_frame

N, USERS, ITEMS = 3000, 40, 30
FLOW = Flow(
    "test",
    source="clicks",
    views=(UserClicks, ItemClicks),
    catalogue=Catalogue.of_ids([f"i{k}" for k in range(ITEMS)]),
)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(7)
    return pl.DataFrame(
        {
            "user_id": [f"u{k}" for k in rng.integers(0, USERS, N)],
            "item_id": [f"i{k}" for k in (rng.zipf(1.5, N) % ITEMS)],
            "kind": rng.choice(["view", "click", "buy"], N),
            "event_ts_ms": 1_600_000_000_000 + np.cumsum(rng.integers(0, 20_000, N)),
            "price": rng.uniform(1, 9, N).round(2),
        }
    )


@pytest.fixture(scope="module")
def events(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("replay") / "events.parquet"
    table.write_parquet(path)
    return path


def run(events, out, **options):
    counts = replay(FLOW, events, out, **options)
    return counts, pl.read_parquet(out).sort("topic", "partition", "offset")


def test_the_cut_into_batches_does_not_matter(events, tmp_path):
    counts, whole = run(events, tmp_path / "a.parquet", batch=256)
    assert counts["scored"] == N and counts["outputs"] == {"recommendations": N, "features": N}
    for batch in (1, 7):
        assert run(events, tmp_path / "b.parquet", batch=batch)[1].equals(whole)


def test_partitions_are_engines_of_their_own(events, tmp_path):
    _, four = run(events, tmp_path / "four.parquet", partitions=4)
    served = four.filter(pl.col("topic") == "recommendations")
    assert sorted(served["partition"].unique()) == [0, 1, 2, 3] and len(served) == N
    values = [json.loads(v) for v in served["value"]]
    assert [v["id"] for v in values] == [
        f"clicks/{p}/{o}" for p, o in served.select("partition", "offset").iter_rows()
    ]
    by_key = {}
    for value in values:
        by_key.setdefault(value["key"], set()).add(value["id"].split("/")[1])
    assert all(len(partitions) == 1 for partitions in by_key.values())


def test_state_goes_on_where_it_was_kept(table, events, tmp_path):
    _, whole = run(events, tmp_path / "whole.parquet")
    table.head(1234).write_parquet(tmp_path / "part.parquet")
    _, first = run(tmp_path / "part.parquet", tmp_path / "1.parquet", folder=tmp_path / "state")
    _, rest = run(events, tmp_path / "2.parquet", folder=tmp_path / "state")
    both = pl.concat([first, rest]).sort("topic", "partition", "offset")
    assert len(rest) == 2 * (N - 1234) and both.equals(whole)


def record(values, path, topic="recommendations"):
    with TableWriter(path, RECORD, topic) as file:
        n = len(values)
        file.write(
            partition=[0] * n, offset=range(n), key=[None] * n, value=values, headers=[[]] * n,
            kafka_ts_ms=[1] * n,
        )  # fmt: skip


def test_recorded_tiers_are_taken_by_id_the_first_one_counts(events, tmp_path):
    served = {}
    for tier in (Tier.FULL, Tier.PRIOR):
        rows = run(events, tmp_path / "t.parquet", tiers=tier)[1].filter(pl.col("topic") == "recommendations")
        served[tier] = dict(zip(rows["offset"], rows["value"]))
    mixed = [served[Tier.FULL if k % 3 else Tier.PRIOR][k] for k in range(N) if k % 10]
    record([*mixed, served[Tier.FULL][3]], tmp_path / "live.parquet")  # a double with another tier
    assert recorded_tiers(tmp_path / "live.parquet")[0][:11].tolist() == [0, 3, 3, 1, 3, 3, 1, 3, 3, 1, 0]
    counts, again = run(events, tmp_path / "again.parquet", recorded=tmp_path / "live.parquet")
    assert counts["silent"] == N // 10
    assert again.filter(pl.col("topic") == "recommendations")["value"].to_list() == mixed


def test_bad_rows_are_dead_and_late_ones_late_and_nothing_else_is_lost(table, tmp_path):
    row = pl.int_range(pl.len())
    bad = table.with_columns(
        price=pl.when(row == 10).then(-1.0).when(row == 11).then(float("nan")).otherwise("price"),
        kind=pl.when(row == 12).then(pl.lit("look")).otherwise("kind"),
        event_ts_ms=pl.when(row == 500).then(1_600_000_000_000).otherwise("event_ts_ms"),
    )
    bad.write_parquet(tmp_path / "bad.parquet")
    counts, rows = run(tmp_path / "bad.parquet", tmp_path / "out.parquet")
    assert (counts["scored"], counts["dead"], counts["late"]) == (N - 4, 3, 1)
    dead = rows.filter(pl.col("topic") == "dead")
    assert dead["offset"].to_list() == [10, 11, 12] and b'"price":NaN' in dead["value"][1]
    assert rows.filter(pl.col("topic") == "late")["offset"].to_list() == [500]
    frame = replay_frame(FLOW, bad)
    assert frame["status"].value_counts().sort("status")["count"].to_list() == [3, 1, N - 4]
    assert frame["items"][10] is None and frame["items"][13] is not None


def test_a_recorded_topic_is_replayed_from_its_bytes(table, events, tmp_path):
    from streamai.replay.produce import read_rows

    values = [v for rows in read_rows(events, CLICKS) for v in rows.values]
    record([b"nonsense", None, *values], tmp_path / "topic.parquet", "clicks")
    counts, rows = run(tmp_path / "topic.parquet", tmp_path / "out.parquet")
    # the recorded Kafka time is 1970: every event lies in the future of its record
    assert counts["dead"] == N + 2 and counts["dead_causes"]["null value"] == 1
    with pytest.raises(InputError, match="leave out --map"):
        replay(FLOW, tmp_path / "topic.parquet", mapping=["price=x"])


def test_a_table_in_a_notebook(table):
    frame = FLOW.replay(table)
    assert len(frame) == N and frame["user_id"].equals(table["user_id"])
    assert frame["items"].list.len().max() <= 10 and frame["tier"].unique().to_list() == ["full"]
    assert frame["events_5m"].min() >= 1
    assert frame.equals(FLOW.replay(table, batch=7, partitions=1))


def test_a_view_over_a_table(table):
    by_user = compute_view(UserClicks, table)
    assert by_user["events_5m"].equals(FLOW.replay(table)["events_5m"])
    assert "views_per_s_1h" in compute_view(ItemClicks, table).columns


def test_command(events, tmp_path, monkeypatch, capsys):
    (tmp_path / "shop.py").write_text(
        "from features.clicks import UserClicks\nfrom streamai import Flow\n"
        "flow = Flow('shop', source='clicks', views=(UserClicks,), catalogue='none.csv')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = str(tmp_path / "o.parquet")
    command = [
        "replay",
        "shop",
        "--events",
        str(events),
        "--items",
        "events",
        "--out",
        out,
        "--show",
        "2",
        "--json",
    ]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["scored"] == N and len(lines) == 3
    assert cli.main([*command, "--tiers", "recorded"]) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_replay_that_was_stopped_leaves_nothing_that_looks_whole_and_no_half_step(
    table, events, tmp_path, error
):
    """The output keeps another name, and the state is that of the last checkpoint."""
    calls = iter(range(3))

    def decide(scored, events):
        if next(calls, None) is None:
            raise error
        return scored.target

    out, folder = tmp_path / "out.parquet", tmp_path / "state"
    with pytest.raises(error):
        replay(FLOW.but(decide=decide), events, out, folder=folder)
    assert not out.exists() and len(pl.read_parquet(tmp_path / "out.parquet.part")) == 2 * 3 * 256
    counts, got = run(events, out, folder=folder)
    assert counts["scored"] == N and got.equals(run(events, tmp_path / "whole.parquet")[1])


def test_a_file_is_whole_when_it_has_its_name_and_a_device_keeps_its(tmp_path):
    path = tmp_path / "a.parquet"
    with TableWriter(path, RECORD):
        assert not path.exists()
    assert len(pl.read_parquet(path)) == 0 and not (tmp_path / "a.parquet.part").exists()
    with pytest.raises(ZeroDivisionError), TableWriter(tmp_path / "b.parquet", RECORD):
        raise ZeroDivisionError
    assert not list(tmp_path.glob("b.*")), "nothing came: nothing is left"
    with TableWriter("/dev/null", RECORD) as file:
        assert file.draft == file.path


@pytest.mark.parametrize("option", ["--batch=0", "--batch=-5", "--partitions=0", "--show=-1"])
def test_numbers_that_make_no_sense_are_wrong_usage(events, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["replay", "tests.test_replay", "--events", str(events), option])
    assert stopped.value.code == 2 and "is below" in capsys.readouterr().err

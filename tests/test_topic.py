"""produce -> Kafka -> record, on the embedded broker."""

import polars as pl
import pytest

from features.clicks import UserClicks
from streamai import cli
from streamai.broker.broker import Broker
from streamai.events import CLICKS
from streamai.flow import Flow
from streamai.replay.produce import partition_of, read_rows
from streamai.replay.record import read_records, topic_of
from streamai.replay.run import replay

N = 3000


@pytest.fixture(scope="module")
def broker():
    with Broker() as broker:
        yield broker


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "events.csv"
    rows = {
        "who": [f"u{i % 50}" for i in range(N)],
        "item_id": [i % 7 for i in range(N)],
        "t": range(1, N + 1),
    }
    pl.DataFrame(rows).write_csv(path)
    return path


def test_a_file_into_a_topic_and_back(broker, table, tmp_path, capsys):
    to = ["--bootstrap", broker.bootstrap]
    maps = ["--map", "user_id=who", "--map", "event_ts_s=t", "--schema", "clicks"]
    assert cli.main(["produce", str(table), "there", "--partitions", "3", "--json", *maps, *to]) == 0
    assert f'"events": {N}' in capsys.readouterr().out
    out = tmp_path / "topic.parquet"
    assert cli.main(["record", "there", str(out), "--json", *to]) == 0
    assert f'"events": {N}' in capsys.readouterr().out
    assert topic_of(out) == "there"
    sent = {0: [], 1: [], 2: []}
    for rows in read_rows(table, CLICKS, ["user_id=who", "event_ts_s=t"], partitions=3):
        for value, partition in zip(rows.values, rows.partition):
            sent[int(partition)].append(value)
    got = {0: [], 1: [], 2: []}
    for records in read_records(out):
        got[records.partition] += records.values
        assert (records.kafka_ts_ns > 0).all()
    assert got == sent and all(sent.values())

    # a recorded topic goes back in with its own partitions and bytes
    assert cli.main(["produce", str(out), "again", "--partitions", "3", *to]) == 0
    again = tmp_path / "again.parquet"
    assert cli.main(["record", "again", str(again), *to]) == 0
    columns = ["partition", "offset", "key", "value"]
    a, b = (pl.read_parquet(p, columns=columns).sort("partition", "offset") for p in (out, again))
    assert a.equals(b)


def test_a_topic_that_is_not_there_is_an_error(broker, tmp_path, capsys):
    out = tmp_path / "x.parquet"
    assert cli.main(["record", "nowhere", str(out), "--bootstrap", broker.bootstrap]) == 1
    assert "no topic 'nowhere'" in capsys.readouterr().err


def test_other_number_of_partitions_is_an_error(broker, table, capsys):
    command = ["produce", str(table), "clicks", "--map", "user_id=who", "--map", "event_ts_s=t"]
    command += ["--bootstrap", broker.bootstrap, "--partitions"]
    assert cli.main([*command, "2"]) == 0
    assert cli.main([*command, "5"]) == 1
    assert "give --partitions 2" in capsys.readouterr().err


def test_partition_is_by_key_and_a_missing_key_goes_to_0():
    keys = [b"a", None, b"b", b"a"]
    partition = partition_of(keys, 64)
    assert partition[0] == partition[3] and partition[1] == 0 and partition[0] != partition[2]
    assert partition_of(keys, 1).tolist() == [0] * 4


def test_a_recording_is_named_after_its_topic(broker, table, tmp_path, monkeypatch, capsys):
    to = ["--bootstrap", broker.bootstrap]
    maps = ["--map", "user_id=who", "--map", "event_ts_s=t", "--schema", "clicks"]
    assert cli.main(["produce", str(table), "named", *maps, *to]) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main(["record", "named", *to]) == 0
    assert topic_of(tmp_path / "named.rec.parquet") == "named"


def test_binary_records_replay_as_json_does(broker, tmp_path, capsys):
    """The same outputs from either form; a row that is not good, or does not fit, stays JSON."""
    rows = {
        "user_id": [f"u{i % 50}" for i in range(1000)],
        "item_id": [f"i{i % 7}" for i in range(1000)],
        "event_ts_s": range(1, 1001),
        "price": [float(i % 9) for i in range(1000)],
    }
    rows["price"][10], rows["user_id"][20] = -1.0, "u" * 41
    pl.DataFrame(rows).write_parquet(tmp_path / "e.parquet")
    flow, outputs = Flow("views", "clicks", [UserClicks]), []
    for topic, form in (("json", []), ("binary", ["--binary"])):
        to = ["--bootstrap", broker.bootstrap, "--partitions", "1", "--schema", "clicks"]
        assert cli.main(["produce", str(tmp_path / "e.parquet"), topic, *form, *to]) == 0
        recorded, out = tmp_path / f"{topic}.rec.parquet", tmp_path / f"{topic}.out.parquet"
        assert cli.main(["record", topic, str(recorded), "--bootstrap", broker.bootstrap]) == 0
        said = replay(flow, recorded, out)
        assert (said["scored"], said["dead"]) == (999, 1)
        outputs.append(pl.read_parquet(out))
        firsts = {v[:1] for v in pl.read_parquet(recorded)["value"].to_list()}
        assert firsts == ({b"{"} if topic == "json" else {b"{", b"\xa5"})
    assert outputs[0].equals(outputs[1])

"""The command: exit codes, plan, state, stats, config, warm."""

import http.server
import json
import socket
import subprocess
import sys
import threading

import pytest

from streamai import FeatureView, cli, count, ewm, mean, ratio
from streamai.cli import plan as plan_command
from streamai.cli import state as state_command
from streamai.deadline import Tier
from streamai.engine import Engine, open_engine
from streamai.errors import StateError, StreamaiError
from streamai.events import CLICK
from streamai.flow import Flow, load
from streamai.replay.record import RECORD, TableWriter
from tests.made import DATA, ITEMS, clicks


class Small(FeatureView):
    source = "clicks"
    key = "user_id"
    clicks_1h = count("1h", kind=CLICK)
    all_1h = count("1h")
    share = ratio(clicks_1h, all_1h)
    dwell = mean("dwell_ms", "5m", exact=True, max=8)
    taste = ewm("price", half_life="7d")


flow = Flow("small", "clicks", [Small], catalogue=ITEMS, ring=16)
HERE = "tests.test_cli"


def printed(capsys, *words):
    """The object that a command prints with --json."""
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_wrong_usage_is_2(capsys):
    for words in ([], ["nonsense"], ["plan"], ["plan", "x", "--nonsense"]):
        with pytest.raises(SystemExit) as e:
            cli.main(words)
        assert e.value.code == 2
    assert "usage: streamai" in capsys.readouterr().err


def test_a_flow_that_is_not_there_is_2_and_says_what_to_do(capsys):
    assert cli.main(["plan", "agents.nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("streamai plan: no module 'agents.nowhere'") and "run from the folder" in err


def test_an_error_on_purpose_is_1_without_a_traceback(capsys, monkeypatch):
    monkeypatch.setenv("STREAMAI_WEB__PORT", "1")
    assert cli.main(["stats"]) == 1
    err = capsys.readouterr().err
    assert "no worker answers at http://127.0.0.1:1/stats" in err and "Traceback" not in err


def test_interrupted_is_130(capsys, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("streamai.cli.config.run", interrupted)
    assert cli.main(["config"]) == 130


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from streamai import cli\n"
        "try: cli.main(['worker', '--help'])\n"
        "except SystemExit: print(sorted({'numba', 'faust', 'polars', 'torch'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_config_names_value_and_origin(capsys, monkeypatch):
    monkeypatch.setenv("STREAMAI_ROWS_MAX", "123")
    monkeypatch.setenv("STREAMAI_SASL_PASSWORD", "hunter2")
    said = printed(capsys, "config")
    assert said["state.rows_max"] == {"value": 123, "origin": "STREAMAI_ROWS_MAX"}
    assert said["kafka.sasl_password"]["value"] == "***"
    cli.main(["config"])
    out = capsys.readouterr().out
    assert "hunter2" not in out and "STREAMAI_ROWS_MAX" in out


def test_plan_counts_every_byte_of_a_row(capsys):
    said = printed(capsys, "plan", HERE)
    features = said["plans"]["user_id"]["features"]
    assert [f["name"] for f in features] == ["clicks_1h", "all_1h", "share", "dwell", "taste"]
    assert sum(f["bytes"] for f in features) == said["plans"]["user_id"]["bytes"] == said["row"]["features"]
    assert said["bytes_a_key"] == sum(said["row"].values()) == plan_command.layout_of(flow).row_bytes
    assert features[0]["tail_step_ns"] == 3600 * 10**9 // 16 and features[3]["tail_step_ns"] == 0
    assert features[2]["op"] == "ratio(clicks_1h, all_1h)" and features[0]["op"] == "count() of click"
    assert cli.main(["plan", HERE]) == 0
    assert "1,000,000 keys in memory" in capsys.readouterr().out


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(folder, a key, the features and last item that the engine gave for the key's last event)."""
    folder = tmp_path_factory.mktemp("state")
    engine, events = open_engine(flow, folder), clicks(500)
    last = {}
    at = 0
    while at < len(events):
        scored = engine.step(events[at:], Tier.FULL)
        for i in range(len(scored)):
            row = scored.events.rows[i]
            features = scored.features[i].tolist()
            last[scored.events.key(i).decode()] = (features, int(row["item"]), int(row["event_ts_ns"]))
        at += len(scored)
    engine.checkpoint()
    engine.close()
    return folder, list(last)[-1], last, engine.catalogue


def test_state_of_a_key_is_what_the_engine_last_said(stored, capsys):
    folder, key, last, catalogue = stored
    for key in list(last)[:5]:
        features, item, event_ts_ns = last[key]
        said = printed(capsys, "state", "get", key, "--flow", HERE, "--folder", str(folder / "small"))
        assert said["last_event_ts_ns"] == event_ts_ns and said["fence"] == 500
        assert said["ring"][0]["item"] == catalogue.ids[item]
        assert said["ring"][0]["title"] == catalogue.titles[item]
        for got, want in zip(said["features"].values(), features):
            assert got is None if want != want else got == pytest.approx(want, abs=1e-5)


def test_state_for_people(stored, capsys, monkeypatch):
    folder, key, _, _ = stored
    monkeypatch.setenv("STREAMAI_STATE__FOLDER", str(folder))
    assert cli.main(["state", "get", key, "--flow", HERE]) == 0
    out = capsys.readouterr().out
    assert "clicks_1h" in out and "last events, newest first" in out
    assert cli.main(["state", "get", "nobody", "--flow", HERE]) == 1
    said = printed(capsys, "state", "info", "--flow", HERE)
    assert said["partitions"][0]["fence"] == 500 and said["partitions"][0]["keys"] > 5


def test_state_of_nothing_says_where_it_looked(tmp_path):
    from streamai.cli.state import open_stores

    with pytest.raises(StateError, match=str(tmp_path)):
        open_stores(flow, str(tmp_path))


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        from streamai.live.stats import Stats

        stats = Stats("small")
        stats.outcomes["scored"], stats.tiers["full"] = 1200, 1200
        stats.stages["step"].add(40_000, 1200)
        body = json.dumps(stats.as_dict()).encode()
        self.send_response(200 if self.path == "/stats" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_stats_reads_what_a_worker_counts(capsys):
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert cli.main(["stats", "--url", url]) == 0
        assert "1,200 scored" in capsys.readouterr().out
        assert printed(capsys, "stats", "--url", url)["tiers"]["full"] == 1200
        server.shutdown()


def test_warm_measures_every_flow(capsys):
    said = printed(capsys, "warm", HERE)
    event_us = said["flows"][HERE]["event_us"]
    assert set(event_us) == {"full", "rank", "prior"} and all(v > 0 for v in event_us.values())


def test_stats_error_is_ours():
    from streamai.cli.stats import read

    with pytest.raises(StreamaiError, match="streamai worker"):
        read("http://127.0.0.1:1/stats", timeout_s=1)


def test_an_exact_window_that_was_too_small_is_told():
    class Busy(FeatureView):
        source, key = "clicks", "user_id"
        small = count("1h", exact=True, max=3)
        large = count("1h", exact=True)

    busy = Flow("busy", "clicks", [Busy])
    engine = Engine(busy)
    events = clicks(500)
    while len(events):
        events = events[len(engine.step(events, Tier.SILENT)) :]
        engine.checkpoint()
    told = [state_command.describe(busy, row, None, 1) for row in engine.slab.rows[: engine.slab.used]]
    assert any(t["overflow"] for t in told)
    for t in told:
        assert set(t["overflow"]) <= {"small"} and t["features"]["small"] <= 3
        if t["features"]["large"] > 3:
            assert t["overflow"]["small"] >= t["features"]["large"] - 3


def test_state_get_finds_the_flow_by_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(DATA.parent)
    monkeypatch.setenv("STREAMAI_FOLDER", str(tmp_path))
    assert cli.main(["state", "get", "u1"]) == 2
    assert "--flow" in capsys.readouterr().err
    events = clicks(50)
    engine = open_engine(load("agents.recommend"), tmp_path)
    engine.step(events, Tier.SILENT)
    engine.checkpoint()
    engine.close()
    key = events.key(49).decode()
    said = printed(capsys, "state", "get", key)
    assert (said["flow"], said["key"], said["partition"]) == ("recommend", key, "0") and said["events"] > 0
    assert printed(capsys, "state", "info")["partitions"][0]["fence"] == 50
    assert printed(capsys, "state", "get", key, "--folder", str(tmp_path / "recommend")) == said
    assert cli.main(["state", "get", "nobody"]) == 1


def test_a_folder_that_cannot_be_used_is_told(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be made.*STREAMAI_FOLDER"):
        open_engine(flow, tmp_path / "file")
    out = tmp_path / "nowhere" / "x.weights"
    assert cli.main(["train", HERE, "--events", "none", "--out", str(out)]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_an_error_of_the_system_names_the_file_and_no_traceback(capsys, monkeypatch):
    def run(args):
        open("/nowhere/at/all")  # noqa: SIM115 (it does not open)

    monkeypatch.setattr(plan_command, "run", run)
    assert cli.main(["plan", HERE]) == 1
    err = capsys.readouterr().err
    assert err.startswith("streamai plan:") and "/nowhere/at/all" in err and "Traceback" not in err


def test_what_keeps_a_worker_from_starting_is_said_before_faust_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STREAMAI_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setenv("STREAMAI_FOLDER", str(tmp_path / "state"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert cli.main(["worker", HERE, "--web-port", str(taken.getsockname()[1])]) == 2
    err = capsys.readouterr().err
    assert "cannot listen on 127.0.0.1" in err and "--web-port" in err and "Traceback" not in err
    (tmp_path / "file").touch()
    monkeypatch.setenv("STREAMAI_FOLDER", str(tmp_path / "file"))
    assert cli.main(["worker", HERE, "--web-port", "0"]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_recorded_topic_into_too_few_partitions_and_rates_that_are_none(tmp_path, capsys):
    path = tmp_path / "t.parquet"
    with TableWriter(path, RECORD, "clicks") as file:
        columns = {"key": [b"u"], "value": [b"{}"], "headers": [[]], "kafka_ts_ms": [1]}
        file.write(partition=[5], offset=[0], **columns)
    assert cli.main(["produce", str(path), "again", "--partitions", "4"]) == 2
    assert "give --partitions 6" in capsys.readouterr().err
    for words in (["produce", "f", "t", "--rate"], ["record", "t", "--seconds"]):
        for number in ("-1", "nan", "inf"):
            with pytest.raises(SystemExit) as stopped:
                cli.main([*words, number])
            assert stopped.value.code == 2 and "is no number from 0 up" in capsys.readouterr().err

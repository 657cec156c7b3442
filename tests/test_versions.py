"""Another model without a restart: what was served is what a replay serves, through kills and bad files."""

from __future__ import annotations

import json
import os
import shutil

import polars as pl
import pytest

from streamai.engine import Engine, reopen_with
from streamai.errors import InputError, ModelError
from streamai.events import CLICKS
from streamai.flow import Flow
from streamai.live.cost import measure_cost
from streamai.live.models import Watched, as_fast
from streamai.model import weights
from streamai.model.kept import Kept
from streamai.replay.record import RECORD, TableWriter
from streamai.replay.run import replay
from streamai.replay.versions import read_versions
from streamai.state.store import MemoryStore
from streamai.wire import version
from tests.made import ITEMS, click_values, clicks, random_model
from tests.workers import Stage, bootstrap, command, id_of

IDS = [f"i{i}" for i in range(50)]


def flow_of(model) -> Flow:
    return Flow(
        name="f", source="clicks", views=(), schema=CLICKS, catalogue=ITEMS, model=model, top_k=5, ring=512
    )


@pytest.fixture
def models(tmp_path):
    """Three models of two sizes."""
    return [random_model(tmp_path / f"{k}.weights", seed=k, d=32 if k == 1 else 16) for k in range(3)]


def digest(path) -> str:
    return weights.read(path).digest


def outputs(engine: Engine, events) -> list[tuple]:
    out, at = [], 0
    while at < len(events):
        scored = engine.step(events[at : at + 100], 3)
        out += [(s.tobytes(), i.tobytes()) for s, i in zip(scored.scores, scored.items)]
        at += len(scored)
        engine.checkpoint()
    return out


def test_a_model_is_kept_whole_or_refused(tmp_path, models):
    kept = Kept(tmp_path / "kept")
    copy = kept.keep(models[0])
    assert copy.stem == digest(models[0]) and kept.found(copy.stem) == copy and kept.keep(models[0]) == copy
    bad = tmp_path / "bad.weights"
    bad.write_bytes(models[0].read_bytes()[:-100])
    with pytest.raises(ModelError, match="bad.weights: array .* ends beyond"):
        kept.keep(bad)
    with pytest.raises(ModelError, match="gone.weights: cannot be copied"):
        kept.keep(tmp_path / "gone.weights")
    with pytest.raises(ModelError, match="no model 0123 in"):
        kept.found("0123")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [copy.name]


def test_a_watched_file_is_taken_up_when_it_is_good(tmp_path, models):
    place = tmp_path / "serving.weights"
    shutil.copy(models[0], place)
    watched = Watched(flow_of(place).but(model=place, output="mine"), place, Kept(tmp_path / "kept"))
    first = watched.start()
    assert first.output == "mine" and not watched.look()
    os.replace(shutil.copy(models[1], tmp_path / "new"), place)
    assert watched.look() and watched.digest == digest(models[1]) and watched.flow.output == "mine"
    assert not as_fast(first, watched.flow) and as_fast(first, flow_of(models[2]))
    place.write_bytes(b"not a model")
    assert (
        not watched.look()
        and "11 bytes; expected a model file" in watched.error
        and watched.digest == digest(models[1])
    )
    place.unlink()
    assert not watched.look()
    shutil.copy(models[2], place)
    assert watched.look() and not watched.error
    assert watched.of(digest(models[0])).model == tmp_path / "kept" / f"{digest(models[0])}.weights"
    assert watched.of("0" * 16) is None


def test_the_store_says_who_serves_and_rows_outlive_models(models):
    """Changed at 300 and back at 600: the first model goes on as if it had never been away, and another one
    knows all that the key did before (as far as its ring goes: here further than the events)."""
    events = clicks(900)
    store = MemoryStore()
    engine = reopen_with(flow_of(models[0]), 0, store)
    assert store.meta()["model"] == digest(models[0]) and engine.since == 0
    got = outputs(engine, events[:300])
    for model, part in ((models[1], events[300:600]), (models[0], events[600:])):
        engine = reopen_with(flow_of(model), 0, store)
        assert engine.since == engine.position == int(part.rows["offset"][0])
        assert store.meta()["model"] == digest(model)
        got += outputs(engine, part)
    again = Engine(flow_of(models[0]), 0, store)
    assert again.since == 600
    whole = {m: outputs(Engine(flow_of(m)), events) for m in models[:2]}
    assert got[:300] == whole[models[0]][:300]
    assert got[300:600] == whole[models[1]][300:600]
    assert got[600:] == whole[models[0]][600:]


def write_topic(path, values, topic):
    with TableWriter(path, RECORD, topic) as file:
        n = len(values)
        file.write(partition=[0] * n, offset=range(n), key=[None] * n, value=values, headers=[[]] * n,
                   kafka_ts_ms=[4_000_000_000_000] * n)  # fmt: skip


def test_a_replay_changes_where_live_did(tmp_path, models):
    kept = Kept(tmp_path / "state/models")
    for model in models:
        kept.keep(model)
    source = tmp_path / "clicks.parquet"
    write_topic(source, click_values(900), "clicks")
    flow = flow_of(models[0])
    at = [(0, 2), (0, 0), (250, 1), (251, 1), (777, 2)]  # of one offset the last counts
    values = [version.encode(flow, 0, o, digest(models[k])) for o, k in at]
    write_topic(tmp_path / "versions.parquet", values, "f.versions")
    versions = read_versions(flow, tmp_path / "versions.parquet", tmp_path / "state")
    assert [v.offset for v in versions[0]] == [0, 250, 251, 777]

    def run(name, **options):
        replay(options.pop("flow", flow), source, tmp_path / name, **options)
        rows = pl.read_parquet(tmp_path / name).filter(pl.col("topic") == "recommendations")
        assert len(rows) == 900
        return rows.sort("offset")["value"].to_list()

    mixed = run("mixed.parquet", versions=versions, batch=64)
    alone = [run(f"{k}.parquet", flow=flow_of(m)) for k, m in enumerate(models)]
    assert mixed == alone[0][:250] + alone[1][250:777] + alone[2][777:]
    assert mixed == run("one.parquet", versions=versions, batch=1)
    with pytest.raises(InputError, match="of flow 'f', not of 'g'"):
        read_versions(flow.but(name="g"), tmp_path / "versions.parquet", tmp_path / "state")
    with pytest.raises(ModelError, match="no model"):
        read_versions(flow, tmp_path / "versions.parquet", tmp_path)
    write_topic(tmp_path / "odd.parquet", [b"{}"], "f.versions")
    with pytest.raises(InputError, match="not a version"):
        read_versions(flow, tmp_path / "odd.parquet", tmp_path / "state")


def test_a_worker_takes_up_models_and_a_replay_gives_what_it_served(tmp_path):
    """A, B by its file, a bad file, kill -9, and C put there while nobody served: every output once, by the
    model that the versions topic names for its offset."""
    made = [random_model(tmp_path / f"{k}.weights", k, 32 if k == 1 else 16, IDS) for k in range(3)]
    place = tmp_path / "serving.weights"
    shutil.copy(made[0], place)
    with bootstrap() as address:
        stage = Stage(address, tmp_path, catalogue=True, model=place)
        try:
            measure_cost(stage.flow())
            _serve_three(stage, made, place)
            _replay_all(stage, made)
        finally:
            stage.stop()


def _put(model, place) -> None:
    shutil.copy(model, place.with_suffix(".new"))
    os.replace(place.with_suffix(".new"), place)


def _serve_three(stage, made, place) -> None:
    stage.produce(2000)
    worker = stage.start()
    worker.wait_for("stats", lambda s: s["events"]["scored"] > 500)
    _put(made[1], place)
    stage.produce(2000)
    worker.wait_for("stats", lambda s: set(s["model"].values()) == {digest(made[1])})
    place.write_bytes(b"rubbish")
    stats = worker.wait_for("stats", lambda s: s["model_error"])
    assert str(place) in stats["model_error"] and stats["stages"]["take_up"]["n"] == 4
    stage.produce(1000)
    worker.wait_for("stats", lambda s: s["events"]["scored"] > 4500)
    worker.kill()
    _put(made[2], place)
    stage.produce(2000)
    worker = stage.start()
    worker.wait_for("stats", lambda s: set(s["model"].values()) == {digest(made[2])})
    stage.produce(1000)
    stage.read(f"{stage.name}-recommendations", 8000)
    assert worker.terminate() == 0, stage.log()


def _replay_all(stage, made) -> set:
    """Parity of what was served; the tables it was served with."""
    out, versions = f"{stage.name}-recommendations", f"{stage.name}.versions"
    for topic in (stage.source, out, versions):
        command(stage, "record", topic, f"{topic}.parquet", "--json")
    command(
        stage, "replay", stage.name, "--events", f"{stage.source}.parquet", "--tiers", "recorded",
        "--recorded", f"{out}.parquet", "--versions", f"{versions}.parquet", "--served",
        "state",
        "--out", "again.parquet", "--json",
    )  # fmt: skip
    parity = command(stage, "parity", f"{out}.parquet", "again.parquet", "--json")
    assert parity["identical"] and parity["compared"] == sum(map(len, stage.sent.values()))
    served = pl.read_parquet(stage.folder / "again.parquet").filter(pl.col("topic") == out)
    by = served["value"].cast(pl.String).str.json_path_match("$.model").value_counts()
    assert set(by.to_series()) == {digest(m) for m in made}
    return set(served["value"].cast(pl.String).str.json_path_match("$.tables"))


def test_versions_name_their_partition():

    v = version.decode(version.encode(Flow("f", "a/b", schema=CLICKS), 7, 12, "ab"))
    assert (v.partition, v.offset, v.flow, v.model, v.id) == (7, 12, "f", "ab", "a/b/7/12")


def test_a_shadow_scores_beside_what_serves(tmp_path):
    """Its outputs are those of an engine with its model over the same events and the state they began with;
    what serves is as without it, and a shadow put in its place begins anew."""
    made = [random_model(tmp_path / f"{k}.weights", k, 16, IDS) for k in range(3)]
    beside = tmp_path / "beside.weights"
    shutil.copy(made[1], beside)
    with bootstrap() as address:
        stage = Stage(address, tmp_path, catalogue=True, model=made[0], STREAMAI_SHADOW=str(beside))
        try:
            measure_cost(stage.flow())
            worker = stage.start()
            worker.wait_for("stats", lambda s: s["shadow"] == dict.fromkeys("0123", digest(made[1])))
            _paced(stage, worker, 1000)
            _put(made[2], beside)
            worker.wait_for("stats", lambda s: s["shadow"] == dict.fromkeys("0123", digest(made[2])))
            _paced(stage, worker, 1000)
            assert worker.terminate() == 0, stage.log()
            assert not list((tmp_path / "state/shadow" / stage.name).iterdir())
            _check_shadow(stage, made)
        finally:
            stage.stop()


def _paced(stage, worker, n: int) -> None:
    """Events in small pieces, so that there is time for outputs."""
    for _ in range(n // 50):
        stage.produce(50)
        total = sum(map(len, stage.sent.values()))
        worker.wait_for("stats", lambda s, total=total: s["events"]["scored"] == total)


def _check_shadow(stage, made) -> None:
    out = f"{stage.name}-recommendations"
    served = {id_of(m): m.value() for m in stage.read(out, 2000)}
    assert served == stage.expected(output="result")
    shadowed = {id_of(m): m.value() for m in stage.read(f"{out}.shadow", 1500)}
    stage.model = made[1]
    first = stage.expected(output="result")
    stage.model = made[2]
    second = stage.expected(output="result")
    by = {digest(made[1]): first, digest(made[2]): second}
    seen = set()
    for name, value in shadowed.items():
        model = json.loads(value)["model"]
        seen.add(model)
        assert value == by[model][name]
    assert seen == set(by)


def test_partitions_take_in_what_the_others_count_and_a_replay_does_too(tmp_path):
    """Four partitions, killed once; outputs name the table, a replay gives their bytes."""
    model = random_model(tmp_path / "m.weights", 0, 16, IDS)
    with bootstrap() as address:
        stage = Stage(address, tmp_path, catalogue=True, model=model, merge="2s")
        try:
            measure_cost(stage.flow())
            stage.produce(2000)
            worker = stage.start()
            worker.wait_for("stats", lambda s: len(s["tables"]) == 4)
            stage.produce(2000)
            worker.wait_for("stats", lambda s: s["events"]["scored"] == 4000)
            worker.kill()
            worker = stage.start()
            before = worker.wait_for("stats", lambda s: len(s["tables"]) == 4)["tables"]
            stage.produce(1000)
            worker.wait_for("stats", lambda s: all(s["tables"][p] != before[p] for p in before))
            stage.produce(1000)
            stage.read(f"{stage.name}-recommendations", 6000)
            assert worker.terminate() == 0, stage.log()
            tables = _replay_all(stage, [model])
            assert len(tables) > 8 and None in tables
        finally:
            stage.stop()


def test_a_shadow_that_cannot_be_opened_leaves_the_worker_serving(tmp_path):
    """Its folder cannot be made: said in the log, tried once a model, and every event is served."""
    made = [random_model(tmp_path / f"{k}.weights", k, 16, IDS) for k in range(2)]
    (tmp_path / "state").mkdir()
    (tmp_path / "state/shadow").write_text("in the way")
    with bootstrap() as address:
        stage = Stage(address, tmp_path, catalogue=True, model=made[0], STREAMAI_SHADOW=str(made[1]))
        try:
            measure_cost(stage.flow())
            worker = stage.start()
            stage.produce(1000)
            stats = worker.wait_for("stats", lambda s: s["events"]["scored"] == 1000)
            assert stats["shadow"] == {}
            served = {id_of(m): m.value() for m in stage.read(f"{stage.name}-recommendations", 1000)}
            assert served == stage.expected(output="result")
            assert worker.terminate() == 0, stage.log()
            log = (tmp_path / f"{stage.name}.log").read_text()
            assert log.count("goes on without the shadow") == 4
        finally:
            stage.stop()

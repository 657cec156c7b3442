"""Slab, store and counts: what is stored is what was there, and only clean rows make room."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from features.clicks import ItemClicks, UserClicks
from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.engine import Engine, open_engine
from streamai.errors import StateError
from streamai.events import CLICKS, Events
from streamai.flow import Counts, Flow
from streamai.kernels import context as c
from streamai.layout import Layout
from streamai.state.counts import RUNS
from streamai.state.slab import Slab
from streamai.state.store import MemoryStore, Store
from streamai.wire.json import Decoder
from tests.made import ITEMS, click_values, clicks, random_model


def flow(**changes) -> Flow:
    return Flow("recommend", "clicks", [UserClicks, ItemClicks], catalogue=ITEMS, **changes)


def decoded(engine: Engine, values: list[bytes], first: int, end: int) -> Events:
    decoder = Decoder(CLICKS, engine.catalogue)
    n = end - first
    return decoder.decode(values[first:end], np.arange(first, end), np.zeros(n, "i8"), "clicks", 0, 0)


def counts_of(engine: Engine) -> list[bytes]:
    of = engine.counts
    arrays = (of.ids, of.w, of.pop, of.fast, of.norm, of.top_pop, of.top_fast)
    return [a.tobytes() for a in arrays]


@pytest.mark.parametrize("counts", [Counts(), Counts(tau_days=0.002, fast_tau_days=0.001)])
def test_counts_come_back_to_the_bit_from_rolling_runs_and_log(tmp_path, counts):
    """More checkpoints than runs, so that the log is cut; short decay, so that it is rescaled on the way."""
    events = clicks(4000, seed=4)
    engine = open_engine(flow(counts=counts), tmp_path)
    for at in range(0, len(events), 12):
        engine.step(events[at : at + 12], Tier.SILENT)
        engine.checkpoint()
        if at in (240, 600):
            before = counts_of(engine)
            engine.close()
            engine = open_engine(flow(counts=counts), tmp_path)
            assert counts_of(engine) == before
    before, clock = counts_of(engine), engine.clock.copy()
    chunks = sum(1 for _ in engine.store.scan(b"c"))
    assert chunks <= RUNS + 2
    if counts.tau_days < 1:
        assert clock[6] > 0  # RESCALED
    engine.close()
    again = open_engine(flow(counts=counts), tmp_path)
    assert counts_of(again) == before
    assert again.position == engine.position
    assert (again.clock[:2] == clock[:2]).all()


@pytest.mark.parametrize("before, after", [(16, 17), (100, 120), (200, 504)])
@pytest.mark.parametrize("counts", [Counts(), Counts(tau_days=0.002, fast_tau_days=0.001)])
def test_counts_outlive_a_grown_catalogue_when_their_log_was_cut(counts, before, after):
    """The new rows have no snapshot, and the records from the beginning are gone."""
    ids = Catalogue.load(ITEMS).ids
    small, grown = (flow(counts=counts).but(catalogue=Catalogue.of_ids(ids[:n])) for n in (before, after))
    store, values = MemoryStore(), click_values(3100, seed=4)
    engine = Engine(small, store=store)
    for at in range(0, 3000, 10):
        engine.step(decoded(engine, values, at, at + 10), Tier.SILENT)
        engine.checkpoint()
    links = engine.counts.w.copy()
    engine = Engine(grown, store=store)
    assert engine.counts.w[: len(links)].tobytes() == links.tobytes()
    engine.step(decoded(engine, values, 3000, 3100), Tier.SILENT)
    engine.checkpoint()
    assert counts_of(Engine(grown, store=store)) == counts_of(engine)


def test_counts_wait_for_a_flow_that_had_no_catalogue_for_a_while():
    bare = Flow("recommend", "clicks", [UserClicks])
    store, values = MemoryStore(), click_values(300, seed=4)
    for at, with_items in ((0, True), (100, False), (200, True)):
        engine = Engine(bare.but(catalogue=ITEMS) if with_items else bare, store=store)
        landmark = engine.clock[c.LANDMARK]
        engine.step(decoded(engine, values, at, at + 100), Tier.SILENT)
        assert at == 0 or engine.clock[c.LANDMARK] == landmark > 0
        engine.checkpoint()
    assert counts_of(Engine(bare.but(catalogue=ITEMS), store=store)) == counts_of(engine)


def test_rows_and_items_come_back_to_the_bit(tmp_path):
    events = clicks(1500, seed=5)
    engine = open_engine(flow(), tmp_path)
    for at in range(0, len(events), 100):
        engine.step(events[at : at + 100], Tier.FULL)
        if at % 300 == 0:
            engine.checkpoint()
    engine.checkpoint()
    rows = {engine.slab.keys[s]: engine.slab.rows[s].tobytes() for s in range(engine.slab.used)}
    items = engine.state_arrays["items_f8"].tobytes()
    engine.close()
    store = Store(tmp_path / "recommend" / "0")
    stored = {}
    for _, value in store.scan(b"k"):
        n = int.from_bytes(value[:2], "little")
        stored[value[2 : 2 + n]] = value[2 + n :]
    store.close()
    assert stored == rows
    assert open_engine(flow(), tmp_path).state_arrays["items_f8"].tobytes() == items


@pytest.mark.parametrize("widths", [(16,), (0,), (32,), (48, 0), (16, 0, 32)])
def test_a_model_change_rebuilds_lm_states_from_the_ring(tmp_path, widths):
    """Also of another width, or where there was none; two rows in memory: most come from the store."""
    events = clicks(400, seed=6)
    second = random_model(tmp_path / "b", seed=2)
    for i, d in enumerate(widths):
        first = random_model(tmp_path / f"a{i}", seed=1, d=d) if d else None
        engine = open_engine(flow(model=first), tmp_path, rows_max=2)
        end = 300 * (i + 1) // len(widths)
        while engine.position < end:
            engine.step(events[engine.position : end], Tier.FULL)
            engine.checkpoint()
        engine.close()
    engine = open_engine(flow(model=second), tmp_path)
    other = Engine(flow(model=second))
    for at in range(0, 300, 50):
        other.step(events[at : at + 50], Tier.FULL)
    got, wanted = engine.step(events[300:], Tier.FULL), other.step(events[300:], Tier.FULL)
    # keys with no more events than the ring holds are as if the new model had been there from the start
    short = wanted.features[:, 0] < 30
    assert short.sum() > 20
    np.testing.assert_array_equal(got.hidden[short], wanted.hidden[short])


def test_any_cut_and_any_eviction_with_a_model(tmp_path):
    events = clicks(600, seed=7)
    model = random_model(tmp_path / "m", seed=3)
    outputs = []
    for rows_max, size in ((65_536, 256), (8, 256), (8, 1)):
        engine, at, out = Engine(flow(model=model), rows_max=rows_max), 0, []
        while at < len(events):
            s = engine.step(events[at : at + size], Tier.FULL)
            out.append(np.hstack([s.hidden, s.scores, s.items.astype("f4")]).tobytes())
            at += len(s)
            if len(s) == 0 or at % 5 == 0:
                engine.checkpoint()
        outputs.append(b"".join(out))
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) > 80_000


def test_a_slab_full_of_dirty_rows_says_so_and_goes_on_after_a_checkpoint():
    events = clicks(300, seed=8)
    engine = Engine(flow(), rows_max=3)
    first = engine.step(events, Tier.SILENT)
    assert 0 < len(first) < len(events)
    taken = len(first)
    if len(engine.step(events[taken:], Tier.SILENT)) == 0:
        barrier = engine.barrier()
        assert len(engine.step(events[taken:], Tier.SILENT)) == 0, "rows in flight must not be evicted"
        engine.store.write(barrier)
        engine.written(barrier)
    assert len(engine.step(events[taken:], Tier.SILENT)) > 0


def test_only_one_process_may_open_a_store(tmp_path):
    store = Store(tmp_path / "s")
    with pytest.raises(StateError, match="no other process"):
        Store(tmp_path / "s", wait_s=0.1)
    store.close()
    Store(tmp_path / "s").close()


def test_an_entry_of_another_format_is_refused():
    store = MemoryStore()
    store.data[b"m"] = b"\x07{}"
    with pytest.raises(StateError, match="format"):
        store.meta()


def test_a_slab_needs_a_row_and_a_step_an_event():
    with pytest.raises(StateError):
        Slab(0, Layout(1, 4, 8, 0))
    with pytest.raises(StateError, match="at least one event"):
        Engine(flow(), batch_max=0)


def test_a_full_disk_is_told_and_the_store_stands_where_it_stood(tmp_path):
    """In a process of its own, in which no file may grow beyond 1 MB."""
    code = f"""
import resource
from streamai.deadline import Tier
from tests.test_state import clicks, flow, open_engine
engine = open_engine(flow(), {str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
events = clicks(3000, seed=4)
while engine.position < len(events):
    engine.step(events[engine.position :][:50], Tier.SILENT)
    engine.checkpoint()
    print(engine.position)
"""
    here = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert "StateError: cannot write the state in" in done.stderr and "disk full" in done.stderr
    engine = open_engine(flow(), tmp_path)
    assert engine.position == int(done.stdout.split()[-1]) < 3000

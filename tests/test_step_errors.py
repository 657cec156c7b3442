"""An exception halfway through a step of the real engine, in a pump: nothing is lost, nothing counts twice.

It is raised where state is half changed: in the kernel, in the user's scorer, in decide.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from features.clicks import ItemClicks, UserClicks
from streamai import engine as engine_module
from streamai.clock import ManualClock
from streamai.deadline import Cost, Tier
from streamai.engine import Engine
from streamai.flow import Flow
from streamai.live.batch import Batch, Pace
from streamai.live.pump import Pump
from streamai.live.stats import Stats
from streamai.state.store import MemoryStore
from streamai.wire.codec import Codec
from tests.made import ITEMS, click_values, eagerness
from tests.pump import SlowSink

N, BAD = 600, 333
VALUES = click_values(N, seed=4)


def flow(**changes) -> Flow:
    return Flow("recommend", "clicks", [UserClicks, ItemClicks], catalogue=ITEMS, **changes)


def play(flow: Flow, skip: int = -1):
    """All values through a pump: (outputs by topic and id, dead letters' ids, an engine of its state)."""
    store, sink, stats, at = MemoryStore(), SlowSink(), Stats("t"), [0]
    kept = np.array([i for i in range(N) if i != skip])

    def rewind(offset):
        at[0] = int(np.searchsorted(kept, offset))

    async def run():
        pump = Pump(
            flow, 0, lambda: Engine(flow, 0, store, batch_max=64), lambda e: Codec(flow, e), sink,
            ManualClock(10**18), stats, rewind, Cost(1000, dict.fromkeys(Tier, 1000)),
            Pace(checkpoint_ns=10**12, checkpoint_events=100, batch_max=64),
        )  # fmt: skip
        while at[0] < len(kept):
            offsets = kept[at[0] : at[0] + 150]
            at[0] += len(offsets)
            values = [VALUES[i] for i in offsets]
            await pump.take(
                Batch("clicks", 0, values, values, offsets, offsets * 0, pump.clock.now_ns(), pump.epoch)
            )
        await pump.close()

    asyncio.run(run())
    outputs: dict[tuple, bytes] = {}
    for topic, value, headers in sink.records:
        name = (topic, headers.get("id", value.split(b",", 1)[0]))
        assert outputs.setdefault(name, value) == value, "a double with other bytes"
    dead = [name[1] for name in outputs if name[0] == flow.topics["dead"]]
    outputs = {name: value for name, value in outputs.items() if name[0] != flow.topics["dead"]}
    return outputs, dead, stats, Engine(flow, 0, store)


def state(engine: Engine):
    """All that is in the state, by key."""
    rows = dict(engine.store.scan(b"k"))
    counts = (engine.counts.ids, engine.counts.w, engine.counts.pop, engine.counts.fast)
    return rows, engine.state_arrays["items_f8"].tobytes(), [a.tobytes() for a in counts], engine.position


class Fault:
    """Raises when event BAD is met: the first time, or every time."""

    def __init__(self, repeats: bool) -> None:
        self.repeats, self.raised = repeats, 0

    def at(self, offsets) -> None:
        if BAD in offsets and (self.repeats or not self.raised):
            self.raised += 1
            raise ZeroDivisionError("halfway")


@pytest.mark.parametrize("repeats", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("where", ["kernel", "scorer", "decide"])
def test_an_exception_halfway_loses_and_doubles_nothing(where, repeats, monkeypatch):
    clean = flow(scorer=eagerness) if where == "scorer" else flow()
    fault, broken = Fault(repeats), clean
    if where == "kernel":
        whole = engine_module.kernel.step

        def half(T, S, W, rows, columns, tiers):
            try:
                fault.at(rows["offset"])
            except ZeroDivisionError:
                n = max(1, len(rows) // 2)
                whole(T, S, W, rows[:n], columns[:n], tiers[:n])
                raise
            whole(T, S, W, rows, columns, tiers)

    else:

        def decide(scored, events):
            fault.at(events.rows["offset"])
            return scored.target

        def raising(features, hidden, out):
            eagerness(features, hidden, out)
            fault.at(current[-1])

        current: list = [()]
        broken = clean.but(scorer=raising) if where == "scorer" else clean.but(decide=decide)
    want, _, _, engine = play(clean, BAD if repeats else -1)
    if where == "kernel":
        monkeypatch.setattr(engine_module.kernel, "step", half)
    elif where == "scorer":
        step = engine_module.kernel.step
        monkeypatch.setattr(
            engine_module.kernel, "step", lambda *a: (current.append(a[3]["offset"]), step(*a))
        )
    outputs, dead, stats, after = play(broken)
    assert fault.raised >= (2 if repeats else 1) and stats.failures == fault.raised
    assert outputs == want
    assert dead == ([b"clicks/0/%d" % BAD] if repeats else [])
    assert state(after)[:3] == state(engine)[:3] and after.position == N

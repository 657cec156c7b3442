"""What a change costs while a worker serves: another model (its partition pauses), and merging counts.

26,000 items, 20,000 keys, 60,000 made clicks in a store on disk. `python -m tests.bench swap merge`.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from features.clicks import UserClicks
from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.engine import Engine, reopen_with
from streamai.flow import Flow
from streamai.model import merged
from streamai.state.store import Store
from streamai.wire.codec import Codec
from tests.bench import names
from tests.made import random_model

ITEMS, KEYS, EVENTS, REPEATS = 26_000, 20_000, 60_000, 9
START_NS = 1_700_000_000_000_000_000


@functools.cache
def _stage() -> tuple[Path, list[Flow]]:
    """A folder with a filled store, and the flow with two models of 2 x 64."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ids = [f"i{k}" for k in range(ITEMS)]
    flow = Flow("change", "clicks", views=(UserClicks,), catalogue=Catalogue(ids), output="change")
    models = [random_model(folder / f"{k}.weights", k, 64, ids) for k in range(2)]
    flows = [flow.but(model=m, output="change") for m in models]
    engine = Engine(flows[0], 0, Store(folder / "state"))
    decoder, r = Codec(flows[0], engine).decoder, np.random.default_rng(0)
    item = np.minimum(r.zipf(1.2, EVENTS), ITEMS) - 1
    keys, times = r.integers(0, KEYS, EVENTS), START_NS + 1_000_000 * np.arange(EVENTS)
    for base in range(0, EVENTS, 256):
        rows = range(base, min(base + 256, EVENTS))
        values = [
            json.dumps(
                {"user_id": f"u{keys[i]}", "item_id": f"i{item[i]}", "kind": "view"}
                | {"event_ts_ns": int(times[i])}
            ).encode()
            for i in rows
        ]
        offsets = np.arange(rows.start, rows.stop)
        events, at = decoder.decode(values, offsets, offsets * 0, "clicks", 0), 0
        while at < len(events):
            at += len(engine.step(events[at:], Tier.SILENT))
            engine.checkpoint()
    engine.close()
    return folder, flows


def _ms(call) -> float:
    """Median milliseconds of some calls, the first one left out."""
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:])) * 1e3


def _row(name: str, value: float, **more) -> dict:
    return {"name": name, "value": value, "unit": "ms", "n": REPEATS, **more}


@names("swap/26000")
def swap() -> dict:
    """From the store closed to the other model ready to serve: the pause of `ChangingPump.take_up`."""
    folder, flows = _stage()
    store, turn = Store(folder / "state"), iter(range(1 << 30))
    value = _ms(lambda: reopen_with(flows[next(turn) % 2], 0, store))
    store.close()
    return _row("swap/26000", value, items=ITEMS, keys=KEYS)


@names("merge/26000_take", "merge/26000_7", "merge/26000_31")
def merge() -> list[dict]:
    """On the event loop: snapshot and taking in. In a thread, by partitions: merging, digest, file."""
    folder, flows = _stage()
    store = Store(folder / "state")
    engine = Engine(flows[0], 0, store)
    own, tau, path = engine.snapshot(), engine.counts.tau, folder / "t.counts"
    table = merged.merge([own], tau)
    rows = [
        _row("merge/26000_take", _ms(lambda: (engine.snapshot(), engine.take_others(table)))),
        *(_row(f"merge/26000_{n}", _ms(lambda n=n: merged.merge([own] * n, tau))) for n in (7, 31)),
    ]
    table.write(path)
    store.close()
    return [row | {"file_mb": path.stat().st_size / 1e6} for row in rows]

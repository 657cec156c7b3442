"""The whole step, one core: features, ring, LM, counts, scan, head, top k; and a checkpoint."""

import tempfile
import time
from pathlib import Path

import numpy as np

from features.clicks import ItemClicks, UserClicks
from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.engine import Engine, open_engine
from streamai.events import CLICKS, EVENT, Events
from streamai.flow import Flow
from streamai.kernels.index import hash_all
from streamai.kernels.inputs import HEAD_INPUTS as Z
from streamai.kernels.inputs import RING_INPUTS
from streamai.model import weights

USERS, WARM, MEASURED = 20_000, 30_000, 20_000
D, LAYERS, M, HIDDEN = 64, 2, 128, 16
FEATURES = len(UserClicks.features) + len(ItemClicks.features)


def random_weights(path: Path, ids: list[str], d: int = D) -> Path:
    """A click model of random numbers: its speed is that of a trained one."""
    rng = np.random.default_rng(0)

    def made(*shape, scale=1.0):
        fan = shape[-2] if len(shape) > 1 else 1
        return (scale * rng.standard_normal(shape) / np.sqrt(fan)).astype("f4")

    def positive(*shape):
        return rng.uniform(0.01, 0.5, shape).astype("f4")

    arrays = {
        "item": made(len(ids), d), "bias": made(len(ids), scale=0.1), "unknown": made(64, d),
        "kind_emb": made(8, d), "gap_emb": made(64, d), "Wside": made(0, d), "Wg": made(LAYERS, d, 4 * d),
        "bg": made(LAYERS, 4 * d), "cw": made(LAYERS, 4, d), "cb": made(LAYERS, d),
        "lam": positive(LAYERS, d), "gap_w": positive(LAYERS, d), "Wo": made(LAYERS, d, d),
        "W1": made(LAYERS, d, 2 * M), "W2": made(LAYERS, M, d), "final_gain": np.ones(d, "f4"),
        "feat_mean": np.zeros(FEATURES, "f4"),
        "feat_inv": np.full(FEATURES, 1e-3, "f4"),
        "head_mean": np.zeros(Z, "f4"), "head_inv": np.ones(Z, "f4"), "head_w": made(Z), "head_b": made(1),
        "head_Wz": made(Z, HIDDEN), "head_W2": made(HIDDEN), "head_bu": made(HIDDEN),
        "head_Wu": made(d + FEATURES + RING_INPUTS, HIDDEN), "head_items": made(len(ItemClicks.features)),
    }  # fmt: skip
    header = {"kind": "clicks", "d": d, "layers": LAYERS, "mlp": M, "side": 0, "vocabulary": ids}
    header["calibrated"] = True
    weights.write(path, header, arrays)
    return path


def stream(n: int, items: int, seed: int = 1) -> Events:
    """n clicks of Zipf users on Zipf items, about 2,000 a second."""
    rng = np.random.default_rng(seed)
    users = rng.permutation(USERS)[np.minimum(rng.pareto(0.8, n).astype("i8"), USERS - 1)]
    names = [f"u{k}".encode() for k in range(USERS)]
    at = np.zeros(USERS + 1, "i8")
    np.cumsum([len(b) for b in names], out=at[1:])
    buf = np.frombuffer(b"".join(names), "u1")
    h0, h1 = np.zeros(USERS, "u8"), np.zeros(USERS, "u8")
    hash_all(buf, at, h0, h1)
    rows = np.zeros(n, EVENT)
    rows["hash0"], rows["hash1"] = h0[users], h1[users]
    rows["key_at"], rows["key_len"] = at[users], np.diff(at)[users]
    rows["event_ts_ns"] = 1_770_000_000_000_000_000 + np.cumsum(rng.integers(100_000, 900_000, n))
    rows["offset"], rows["kind"] = np.arange(n), rng.integers(1, 5, n)
    rows["item"] = rng.permutation(items)[np.minimum(rng.pareto(0.8, n).astype("i8"), items - 1)]
    rows["item_hash"] = rows["item"] + 1
    columns = np.full((n, len(CLICKS.columns)), np.nan)
    columns[:, 0], columns[:, 2] = rng.uniform(1, 100, n), rng.uniform(100, 60_000, n)
    return Events("clicks", 0, rows, columns, buf)


def _flow(items: int, folder: str) -> Flow:
    ids = [f"i{k}" for k in range(items)]
    path = random_weights(Path(folder) / "model.weights", ids)
    return Flow("bench", "clicks", [UserClicks, ItemClicks], catalogue=Catalogue.of_ids(ids), model=path)


def _run(engine: Engine, events: Events, batch: int, tier: Tier) -> np.ndarray:
    """us an event of every call."""
    taken = []
    at = 0
    while at < len(events):
        part = events[at : at + batch]
        began = time.perf_counter_ns()
        done = len(engine.step(part, tier))
        taken.append((time.perf_counter_ns() - began) / max(1, done) / 1e3)
        at += done
        if done < len(part):
            engine.checkpoint()
    return np.array(taken)


def _numpy_peer(items: int) -> float:
    """us of the LM's matrix products and the catalogue scan alone, in numpy; no features, counts or head."""
    rng = np.random.default_rng(0)
    x, table = rng.standard_normal(D).astype("f4"), rng.standard_normal((items, D)).astype("f4")
    shapes = ((D, 4 * D), (D, D), (D, 2 * M), (M, D)) * LAYERS
    matrices = [rng.standard_normal(s).astype("f4") for s in shapes]
    inputs = [np.resize(x, s[0]) for s in shapes]
    taken = []
    for _ in range(300):
        began = time.perf_counter_ns()
        for v, w in zip(inputs, matrices, strict=True):
            v @ w
        scores = table @ x
        best = np.argpartition(scores, -10)[-10:]
        best[np.argsort(-scores[best])]
        taken.append((time.perf_counter_ns() - began) / 1e3)
    return float(np.median(taken))


def _step(items: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        flow = _flow(items, folder)
        events = stream(WARM + MEASURED, items)
        peer = {"peer": "numpy: LM products and scan only", "peer_value": round(_numpy_peer(items), 1)}
        rows = []
        for batch in (1, 64):
            engine = Engine(flow, batch_max=256)
            _run(engine, events[:WARM], 256, Tier.SILENT)
            taken = _run(engine, events[WARM:], batch, Tier.FULL)
            tail = "" if batch == 1 else "_batch64"
            for at, part in ((50, ""), (99, "_p99"), (99.9, "_p999")):
                value = round(float(np.percentile(taken, at)), 1)
                row = {"name": f"step/{items}{tail}{part}", "value": value, "unit": "us", "n": len(taken)}
                rows.append(row | peer)
            rate = round(1e6 / float(taken.mean()))
            rows.append(
                {"name": f"step/{items}{tail}_events_per_s", "value": rate, "unit": "events/s", "n": MEASURED,
                 "peer": peer["peer"], "peer_value": round(1e6 / peer["peer_value"])}
            )  # fmt: skip
        return rows


def step_3700() -> list[dict]:
    return _step(3_700)


def step_26000() -> list[dict]:
    return _step(26_000)


def tiers() -> list[dict]:
    """us an event of every tier, 3,700 items, batches of 64."""
    with tempfile.TemporaryDirectory() as folder:
        flow = _flow(3_700, folder)
        events = stream(WARM + 4 * 5_000, 3_700)
        engine = Engine(flow)
        _run(engine, events[:WARM], 256, Tier.SILENT)
        rows = []
        for k, tier in enumerate(Tier):
            part = events[WARM + k * 5_000 : WARM + (k + 1) * 5_000]
            value = round(float(np.median(_run(engine, part, 64, tier))), 2)
            rows.append({"name": f"step/tier_{tier.name.lower()}", "value": value, "unit": "us", "n": 5_000})
        return rows


def checkpoint() -> list[dict]:
    """Bytes and time a row of a checkpoint of 400 dirty keys, beside writing the same bytes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(_flow(3_700, folder), Path(folder) / "state")
        events = stream(20_000, 3_700)
        taken, rows, sizes, plain = [], 0, 0, []
        for at in range(0, len(events), 400):
            for cut in (0, 200):
                engine.step(events[at + cut : at + cut + 200], Tier.SILENT)
            began = time.perf_counter_ns()
            done = engine.checkpoint()
            taken.append((time.perf_counter_ns() - began) / 1e3)
            rows, sizes = rows + len(done.rows), sizes + done.nbytes()
            data = b"".join(v for _, v in done.entries())
            began = time.perf_counter_ns()
            (Path(folder) / "plain").write_bytes(data)
            plain.append((time.perf_counter_ns() - began) / 1e3)
        n = len(taken)
        peer = {"peer": "the same bytes to a plain file"}
        each = rows / n
        return [
            {"name": "checkpoint/row", "value": round(sum(taken) / rows, 2), "unit": "us", "n": rows, **peer,
             "peer_value": round(sum(plain) / rows, 2)},
            {"name": "checkpoint/row_bytes", "value": round(sizes / rows), "unit": "bytes", "n": rows,
             "limit": engine.layout.row_bytes},
            {"name": "checkpoint/whole", "value": round(float(np.median(taken)) / 1e3, 3), "unit": "ms",
             "n": n, "rows": round(each), **peer, "peer_value": round(float(np.median(plain)) / 1e3, 3)},
        ]  # fmt: skip

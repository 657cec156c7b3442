"""How fast JSON becomes Events and results become JSON, in batches of 256, beside msgspec line by line.

Events per CPU-second of one core; the best of seven turns, in which ours and the peer's alternate.
"""

from __future__ import annotations

import time

import msgspec
import numpy as np

from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.events import CLICKS
from streamai.scored import Scored
from streamai.wire.json import Decoder
from streamai.wire.output import Encoder
from tests.bench import names, streams

BATCH, N, TURNS = 256, 51_200, 7
FEATURES = ("views_5m", "clicks_1h", "heat_10m", "idle_ms")


class Click(msgspec.Struct, gc=False):
    user_id: str
    item_id: str
    kind: str
    event_ts_ms: int


class Values(msgspec.Struct, gc=False):
    views_5m: float | None
    clicks_1h: float | None
    heat_10m: float | None
    idle_ms: float | None


class Output(msgspec.Struct, gc=False):
    id: str
    key: str
    event_ts_ns: int
    features: Values
    plan: str


class List(msgspec.Struct, gc=False):
    id: str
    key: str
    event_ts_ns: int
    items: list[str]
    scores: list[float]
    tier: str
    model: str
    plan: str
    catalogue: str


def _rates(ours, peer) -> tuple[int, int]:
    """Events per CPU-second of both, each called for N events."""
    best = [float("inf"), float("inf")]
    ours(), peer()
    for _ in range(TURNS):
        for k, run in enumerate((ours, peer)):
            began = time.process_time()
            run()
            best[k] = min(best[k], time.process_time() - began)
    return round(N / best[0]), round(N / best[1])


def _row(name: str, ours, peer, peer_name: str, **more) -> dict:
    value, peer_value = _rates(ours, peer)
    row = {"name": name, "value": value, "unit": "events/s/core", "n": N}
    return row | {"peer": peer_name, "peer_value": peer_value} | more


def _batches() -> tuple[Decoder, list, np.ndarray]:
    decoder = Decoder(CLICKS, Catalogue.of_ids([f"i{i}" for i in range(20_000)]))
    lines = streams.w1_json(N)
    return decoder, [lines[i : i + BATCH] for i in range(0, N, BATCH)], np.arange(BATCH)


@names("decode/json", "decode/json_arrays")
def decode_json() -> list[dict]:
    """W1 records to Events: keys hashed, items found in a catalogue of 20,000, every rule checked.

    The peer's objects (decode/json) still hold text; decode/json_arrays has a peer that ends at arrays too.
    """
    decoder, batches, offsets = _batches()
    times = np.full(BATCH, 1_800_000_000_000_000_000)
    one = msgspec.json.Decoder(Click).decode
    kinds, index = CLICKS.kinds, {item_id: i for i, item_id in enumerate(decoder.catalogue.ids)}

    def ours():
        for values in batches:
            decoder.decode(values, offsets, times, "clicks", 0)

    def peer():
        for values in batches:
            for value in values:
                one(value)

    def arrays():
        for values in batches:
            events = [one(value) for value in values]
            np.array([e.event_ts_ms for e in events])
            np.array([kinds[e.kind] for e in events])
            np.array([hash(e.user_id) for e in events])
            np.array([index.get(e.item_id, -1) for e in events])

    return [
        _row("decode/json", ours, peer, "msgspec Struct per line"),
        _row("decode/json_arrays", ours, arrays, "msgspec Struct per line, then arrays"),
    ]


def _scored(k: int) -> tuple[Scored, Catalogue]:
    decoder, batches, offsets = _batches()
    events = decoder.decode(batches[0], offsets, np.zeros(BATCH, np.int64), "clicks", 0)
    rng = np.random.default_rng(7)
    values = [rng.integers(1, 60, BATCH), rng.integers(0, 9, BATCH), rng.exponential(3, BATCH)]
    values.append(rng.integers(1, 90_000, BATCH))
    scored = Scored(
        events,
        status=np.zeros(BATCH, np.uint8),
        tier=np.full(BATCH, Tier.FULL, np.uint8),
        features=np.stack(values, 1).astype(np.float32),
        hidden=np.zeros((BATCH, 0), np.float32),
        items=rng.integers(0, 20_000, (BATCH, k)).astype(np.int32),
        scores=rng.normal(size=(BATCH, k)).astype(np.float32),
        target=np.full(BATCH, np.nan),
    )
    return scored, decoder.catalogue


@names("encode/json", "encode/json_top10")
def encode_json() -> list[dict]:
    """Four features an event (encode/json), and lists of ten items (encode/json_top10), to JSON values."""
    scored, catalogue = _scored(10)
    digest = catalogue.digest
    encoder = Encoder("clicks", FEATURES, digest, digest, catalogue, digest)
    encode = msgspec.json.Encoder().encode
    rows = scored.events.rows

    keys = [scored.events.key(i).decode() for i in range(BATCH)]
    heads = list(zip(rows["offset"].tolist(), keys, rows["event_ts_ns"].tolist(), strict=True))

    def features():
        for _ in range(N // BATCH):
            encoder.features(scored)

    def features_peer():
        for _ in range(N // BATCH):
            for (offset, key, ts), values in zip(heads, scored.features.tolist(), strict=True):
                encode(Output(f"clicks/0/{offset}", key, ts, Values(*values), digest))

    def lists():
        for _ in range(N // BATCH):
            encoder.recommendations(scored)

    def lists_peer():
        ids = catalogue.ids
        for _ in range(N // BATCH):
            rows = zip(heads, scored.items.tolist(), scored.scores.tolist(), strict=True)
            for (offset, key, ts), items, scores in rows:
                names = [ids[i] for i in items]
                short = [round(s, 6) for s in scores]
                encode(List(f"clicks/0/{offset}", key, ts, names, short, "full", digest, digest, digest))

    return [
        _row("encode/json", features, features_peer, "msgspec Struct per line"),
        _row("encode/json_top10", lists, lists_peer, "msgspec Struct per line"),
    ]

"""Made events as the engine takes them, through the real encoder and decoder."""

from pathlib import Path

import numpy as np
from numba import njit

from replay_data.generate import stream_clicks, stream_market
from streamai.catalogue import Catalogue
from streamai.events import CLICKS, MARKET, Events, Schema
from streamai.model import weights
from streamai.wire.encode import encode_events
from streamai.wire.json import Decoder

DATA = Path(__file__).parent.parent / "replay_data"
ITEMS = DATA / "items.csv"


def click_values(n: int, seed: int = 1) -> list[bytes]:
    """n click records as JSON."""
    return encode_events(CLICKS, stream_clicks(n, seed))


def market_values(n: int, seed: int = 1) -> list[bytes]:
    """n market records as JSON."""
    return encode_events(MARKET, stream_market(n, seed))


def clicks(n: int, seed: int = 1) -> Events:
    """n clicks of partition 0, decoded."""
    return _decoded(CLICKS, Catalogue.load(ITEMS), click_values(n, seed))


def market(n: int, seed: int = 1) -> Events:
    """n market events of partition 0, decoded."""
    return _decoded(MARKET, None, market_values(n, seed))


def _decoded(schema: Schema, catalogue: Catalogue | None, values: list[bytes]) -> Events:
    n = len(values)
    decoder = Decoder(schema, catalogue)
    events = decoder.decode(values, np.arange(n), np.zeros(n, "i8"), schema.name, 0, 0)
    assert not events.dead
    return events


@njit
def eagerness(features, hidden, out):
    """A scorer as a user writes one, for UserClicks: views of five minutes by events of the hour."""
    for i in range(features.shape[0]):
        out[i, 0] = features[i, 2] / (1 + features[i, 1])


def random_model(path: Path, seed: int = 0, d: int = 16, ids: list[str] | None = None) -> Path:
    """A click model of random numbers for the made catalogue, or these ids: 2 layers of width d, no head."""
    rng = np.random.default_rng(seed)
    ids, layers, m = ids or Catalogue.load(ITEMS).ids, 2, 32

    def made(*shape):
        return (rng.standard_normal(shape) / 4).astype("f4")

    arrays = {
        "item": made(len(ids), d), "bias": made(len(ids)), "unknown": made(64, d), "kind_emb": made(8, d),
        "gap_emb": made(64, d), "Wside": made(0, d), "Wg": made(layers, d, 4 * d), "bg": made(layers, 4 * d),
        "cw": made(layers, 4, d), "cb": made(layers, d), "lam": abs(made(layers, d)),
        "gap_w": abs(made(layers, d)), "Wo": made(layers, d, d), "W1": made(layers, d, 2 * m),
        "W2": made(layers, m, d), "final_gain": np.ones(d, "f4"),
    }  # fmt: skip
    header = {"kind": "clicks", "d": d, "layers": layers, "mlp": m, "side": 0, "vocabulary": ids}
    weights.write(path, header, arrays)
    return path

"""Made events as the engine takes them, through the real encoder and decoder."""

from pathlib import Path

import numpy as np

from replay_data.generate import stream_clicks, stream_market
from streamai.catalogue import Catalogue
from streamai.events import CLICKS, MARKET, Events, Schema
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

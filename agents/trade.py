"""Where the mid goes next, and the position wanted. `market` -> `signals`.

streamai worker agents.trade      the same as      faust -A agents.trade worker
"""

from pathlib import Path

import numpy as np

from features.market import Book
from streamai import Flow, live
from streamai.deadline import Tier

DATA = Path(__file__).parent.parent / "replay_data"
HORIZON = 1  # of flow.horizons: 1 s
ENTER = 0.5  # |p(up) - p(down)| from which a position is taken, and the opposite one given up


def target(scored, events):
    """Position wanted, in units: 1 long, -1 short, NaN as it is.

    scored.scores [n, 3 H] f4: p(down), p(flat), p(up) of every horizon. Between the thresholds the position
    is held, as giving it up costs half a spread. A tier below RANK abstains: a stale score is never an order.
    """
    down, up = scored.scores[:, 3 * HORIZON], scored.scores[:, 3 * HORIZON + 2]
    edge = up - down
    sure = (np.abs(edge) > ENTER) & (scored.tier >= Tier.RANK)
    return np.where(sure, np.sign(edge), np.nan)


flow = Flow(
    name="trade",
    source="market",
    views=[Book],
    model=DATA / "models" / "trade.weights",
    decide=target,
    budget_ms=5.0,
    disorder="2s",
)

app = live.app(flow)


@app.agent(app.batches, supervisor_strategy=live.CrashingSupervisor)
async def trade(stream):
    async for batch in stream:
        await app.pump.take(batch)

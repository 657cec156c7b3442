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
ENTER = 0.35  # p(up) - p(down) from which the position is worth its spread


def target(scored, events):
    """Position wanted, in units: 1 long, -1 short, 0 flat, NaN no opinion.

    scored.scores [n, 3 H] f4: p(down), p(flat), p(up) of every horizon. A tier below RANK abstains: a stale
    or missing score is never an order.
    """
    down, up = scored.scores[:, 3 * HORIZON], scored.scores[:, 3 * HORIZON + 2]
    edge = up - down
    wanted = np.sign(edge) * (np.abs(edge) > ENTER)
    return np.where(scored.tier >= Tier.RANK, wanted, np.nan)


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

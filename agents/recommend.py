"""Ten items for the user, after each event. `clicks` -> `recommendations`.

streamai worker agents.recommend      the same as      faust -A agents.recommend worker
"""

from pathlib import Path

from features.clicks import ItemClicks, UserClicks
from streamai import Flow, live

DATA = Path(__file__).parent.parent / "replay_data"

flow = Flow(
    name="recommend",
    source="clicks",
    views=[UserClicks, ItemClicks],
    catalogue=DATA / "items.csv",
    model=DATA / "models" / "recommend.weights",
    budget_ms=5.0,
    top_k=10,
)

app = live.app(flow)


@app.agent(app.batches, supervisor_strategy=live.CrashingSupervisor)
async def recommend(stream):
    async for batch in stream:
        await app.pump.take(batch)

"""A flow as a Faust app: worker, agents, sensors, web and life cycle are Faust's; the data path is ours."""

from __future__ import annotations

import asyncio
from pathlib import Path

import faust
import uvloop
from faust.app import BootStrategy

from streamai import settings as settings_
from streamai.clock import WallClock
from streamai.flow import Flow
from streamai.live.partitions import Partitions
from streamai.live.source import Source
from streamai.live.stats import Stats
from streamai.settings import Settings

BATCHES_MAX = 4  # in the channel: the next fetch waits while the agent is behind
POLL_AGE_MAX_S = 30.0  # a worker that has not polled for so long is not alive


class _Boot(BootStrategy):
    """Faust without its Kafka half: no consumer, producer, conductor, leader topic or tables."""

    enable_kafka = False


class App(faust.App):
    """faust.App with the flow's channel of partition batches, its pumps and its figures.

    batches  channel; an agent on it is the flow's one line of work
    pump     Partitions: `await app.pump.take(batch)`
    stats    Stats
    """

    BootStrategy = _Boot
    flow: Flow
    settings: Settings
    batches: object
    pump: Partitions
    stats: Stats
    source: Source | None = None

    async def on_first_start(self) -> None:
        Path(self.settings.state.folder).mkdir(parents=True, exist_ok=True)  # Faust makes its own below it
        await super().on_first_start()


def app(flow: Flow, settings: Settings | None = None) -> App:
    """The Faust app of a flow. Write in its module:

        app = live.app(flow)

        @app.agent(app.batches, supervisor_strategy=live.CrashingSupervisor)
        async def recommend(stream):
            async for batch in stream:
                await app.pump.take(batch)

    then `streamai worker MODULE` or `faust -A MODULE worker`. With Faust's default supervisor a batch that
    raised would be lost from the channel; the crashing one stops the worker, and a restart repeats it.

    Makes uvloop the process's event loop, as `faust -A` has no other place to be told.
    """
    settings = settings or settings_.load()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    web = settings.web
    made = App(
        flow.name,
        # Faust constructs its Kafka transport but never connects it
        broker=f"kafka://{settings.kafka.bootstrap or 'localhost:9092'}",
        store="memory://",
        datadir=f"{settings.state.folder}/faust",
        autodiscover=False,
        worker_redirect_stdouts=False,
        web_enabled=web.port > 0,
        web_port=web.port or None,
        web_bind=web.host,
        web_host=web.host,
    )
    made.flow, made.settings = flow, settings
    made.stats = Stats(flow.name)
    made.pump = Partitions(flow, settings, made.stats, WallClock())
    made.batches = made.channel(maxsize=BATCHES_MAX)

    @made.service
    class FlowSource(Source):
        app = made

    _pages(made)
    return made


def _pages(made: App) -> None:
    @made.page("/health")
    async def health(web, request):
        """Alive: polled lately. Ready: partitions assigned and their state restored."""
        source = made.source
        age_s = None  # not yet: kernels are being compiled, or the group is being joined
        if source is not None and source.polled_ns:
            age_s = (made.pump.clock.monotonic_ns() - source.polled_ns) / 1e9
        live = age_s is None or age_s < POLL_AGE_MAX_S
        ready = source is not None and source.ready
        about = {"live": live, "ready": ready, "poll_age_s": age_s, "partitions": sorted(made.pump.pumps)}
        return web.json(about, status=200 if live else 503)

    @made.page("/ready")
    async def ready(web, request):
        is_ready = made.source is not None and made.source.ready
        return web.json({"ready": is_ready}, status=200 if is_ready else 503)

    @made.page("/metrics")
    async def metrics(web, request):
        return web.bytes(made.stats.prometheus(), content_type="text/plain")

    @made.page("/stats")
    async def stats(web, request):
        return web.json(made.stats.as_dict())

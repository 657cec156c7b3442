"""A worker process on the embedded broker: throughput beside a bare loop, latency from intended send time.

The worker, the broker and this process (feeder and reader) share the machine's cores.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from hdrh.histogram import HdrHistogram

from streamai.broker import start_broker_process
from tests.bench import names, streams

ROOT = pathlib.Path(__file__).parents[2]
PARTITIONS, ITEMS = 4, 3_700
FEATURES_EVENTS, FULL_EVENTS, SECONDS = 200_000, 40_000, 20
REPEATS = 3

MODULE = """
from streamai import live
from tests.bench.live import flow_of

flow = flow_of({kind!r}, {folder!r})
app = live.app(flow)

@app.agent(app.batches, supervisor_strategy=live.CrashingSupervisor)
async def work(stream):
    async for batch in stream:
        await app.pump.take(batch)
"""


def flow_of(kind: str, folder: str):
    """features: the user's views. full, latency: user and item views, LM, counts and head, 3,700 items."""
    from features.clicks import UserClicks
    from streamai.flow import Flow
    from tests.bench import step

    if kind == "features":
        return Flow("bench", "clicks", (UserClicks,), budget_ms=1000.0)
    # past a deadline the tier stays FULL for throughput; `latency` has the flow's own
    flow = step._flow(ITEMS, folder)
    return flow.but(catch_up="full" if kind == "full" else "prior", publish_features=False)


@functools.lru_cache(1)
def _w1() -> tuple[list[int], list[int]]:
    """Users and items of the stream that all of tests.bench uses."""
    made = streams.w1(FEATURES_EVENTS)
    return made["user"].tolist(), (made["item"] % ITEMS).tolist()


def _click(i: int, ts_ns: int) -> tuple[int, bytes]:
    """(partition, JSON) of click i: a user's events are in one partition."""
    users, items = _w1()
    user, item = users[i % FEATURES_EVENTS], items[i % FEATURES_EVENTS]
    return user % PARTITIONS, (
        b'{"user_id":"u%d","item_id":"i%d","kind":"view","event_ts_ns":%d,"price":%d}'
        % (user, item, ts_ns, i % 97)
    )


class Line:
    """A broker process, a topic `clicks`, and one consumer of it: a worker or the bare loop."""

    def __init__(self, kind: str, bare: bool = False) -> None:
        self.kind, self.bare = kind, bare

    def __enter__(self) -> Line:
        self.stack = contextlib.ExitStack()
        self.folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.bootstrap = self.stack.enter_context(start_broker_process(partitions=PARTITIONS)).bootstrap
        topics = set(flow_of(self.kind, self.folder).topics.values()) | {"clicks"}
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        for done in admin.create_topics(
            [NewTopic(t, PARTITIONS, 1) for t in topics] + [NewTopic("ping", 1, 1)]
        ).values():
            done.result(10)
        self.output = flow_of(self.kind, self.folder).topics.get("result", "clicks.features")
        self.reader = Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": "reader", "fetch.wait.max.ms": 500}
        )
        return self

    def __exit__(self, *exc) -> None:
        self.reader.close()
        self.stack.close()

    def start(self) -> None:
        """Start the consumer of the topic."""
        (pathlib.Path(self.folder) / "benched.py").write_text(
            MODULE.format(kind=self.kind, folder=self.folder)
        )
        env = os.environ | {
            "STREAMAI_BOOTSTRAP": self.bootstrap,
            "STREAMAI_FOLDER": self.folder + "/state",
            "STREAMAI_WEB__PORT": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = ["tests.bench.bare", self.kind, self.folder, self.bootstrap] if self.bare else []
        command = command or ["streamai", "worker", "benched", "--loglevel", "error"]
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=self.folder, env=env, stdout=subprocess.DEVNULL
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)

    def fill(self, n: int) -> None:
        """n clicks, 2 ms apart, before anybody reads."""
        producer = Producer(
            {"bootstrap.servers": self.bootstrap, "linger.ms": 20, "queue.buffering.max.messages": n}
        )
        for i in range(n):
            partition, value = _click(i, 1_770_000_000_000_000_000 + i * 2_000_000)
            producer.produce("clicks", value, partition=partition)
        producer.flush(60)

    def outputs(self) -> int:
        """Records in the output topic."""
        places = [TopicPartition(self.output, p) for p in range(PARTITIONS)]
        return sum(self.reader.get_watermark_offsets(place, 5, cached=False)[1] for place in places)


def _throughput(kind: str, n: int, bare: bool) -> float:
    """Events/s from the first output to the last."""
    with Line(kind, bare) as line:
        line.fill(n)
        line.start()
        first = begun = 0
        deadline = time.monotonic() + 300
        while (now := line.outputs()) < n:
            if now and not begun:
                first, begun = time.monotonic(), now
            if time.monotonic() > deadline:
                raise TimeoutError(f"{now} of {n} outputs after 300 s")
            time.sleep(0.01)
        return (n - begun) / (time.monotonic() - first)


def _beside_bare(name: str, kind: str, n: int, share: float | None, limit: float | None) -> dict:
    ours, bare = [], []
    for _ in range(REPEATS):  # taken in turns: the machine's mood changes slowly
        ours.append(_throughput(kind, n, bare=False))
        bare.append(_throughput(kind, n, bare=True))
    value, peer = statistics.median(ours), statistics.median(bare)
    return {
        "name": name,
        "value": value,
        "unit": "events/s",
        "n": n,
        "peer": "bare aiokafka loop, same engine",
        "peer_value": peer,
        "limit": limit if share is None else share * peer,
    }


@names("live/features")
def features() -> dict:
    """JSON to features to JSON through a Faust worker."""
    return _beside_bare("live/features", "features", FEATURES_EVENTS, 0.8, None)


@names("live/full")
def full() -> dict:
    """JSON to ten items: LM, counts, head and scan of 3,700 items, every event at FULL."""
    return _beside_bare("live/full", "full", FULL_EVENTS, None, 10_000)


def _watch(line: Line, seen: dict, stop: threading.Event) -> None:
    """Latency of every output and ping from the time it was due, in us."""
    places = [TopicPartition(line.output, p, 0) for p in range(PARTITIONS)] + [TopicPartition("ping", 0, 0)]
    line.reader.assign(places)
    while not stop.is_set():
        message = line.reader.poll(0.1)
        for m in ([message] if message else []) + line.reader.consume(500, 0):
            now = time.time_ns()
            if m.error():
                continue
            if m.topic() == "ping":
                seen["ping"].append((int(m.value()), now))
            else:
                value = m.value()  # looked into without a parser: this process shares the cores it measures
                at = value.index(b'"event_ts_ns":') + 14
                seen["out"].append((int(value[at : value.index(b",", at)]), now))
                seen["full"] += b'"tier":"full"' in value


def _feed(line: Line, rate: int, seconds: float) -> tuple[int, int]:
    """Open loop: event i is due at start + i / rate whatever became of the others. (start ns, events)"""
    producer = Producer({"bootstrap.servers": line.bootstrap, "linger.ms": 0})
    n, gap = int(rate * seconds), int(1e9 / rate)
    start = time.time_ns() + 10_000_000
    for i in range(n):
        due = start + i * gap
        while (wait := due - time.time_ns()) > 0:
            time.sleep(wait / 1e9)
        partition, value = _click(i, due)
        producer.produce("clicks", value, partition=partition)
        if i % max(1, rate // 100) == 0:
            producer.produce("ping", b"%d" % due, partition=0)
        producer.poll(0)
    producer.flush(10)
    return start, n


def _histogram(seen: list[tuple[int, int]], since_ns: int) -> HdrHistogram:
    out = HdrHistogram(1, 60_000_000, 3)
    for due, now in seen:
        if due >= since_ns:
            out.record_value(max(1, min(59_999_999, (now - due) // 1000)))
    return out


def _latency(rate: int, limit_ms: float) -> list[dict]:
    seen, stop = {"out": [], "ping": [], "full": 0}, threading.Event()
    with Line("latency") as line:
        thread = threading.Thread(target=_watch, args=(line, seen, stop))
        thread.start()
        try:
            line.start()
            fed = 0
            while len(seen["out"]) < 20:  # the worker is up
                fed += _feed(line, 50, 0.5)[1]
            while len(seen["out"]) < fed:  # what gathered while it started has been worked off
                time.sleep(0.05)
            gc.collect()
            gc.disable()
            before, full_before = len(seen["out"]), seen["full"]
            start, n = _feed(line, rate, SECONDS)
            time.sleep(1.5)
        finally:
            gc.enable()
            stop.set()
            thread.join()
    name, warm = f"live/latency_{rate}", start + SECONDS * 100_000_000  # a tenth is warm-up
    rows = []
    for suffix, key in (("", "out"), ("_broker", "ping")):
        h = _histogram(seen[key], warm)
        rows.append(
            {
                "name": name + suffix,
                "value": h.get_value_at_percentile(99) / 1e3,
                "unit": "ms, p99",
                "n": h.total_count,
                "p50_ms": h.get_value_at_percentile(50) / 1e3,
                "p999_ms": h.get_value_at_percentile(99.9) / 1e3,
                "max_ms": h.get_max_value() / 1e3,
            }
        )
    outputs = len(seen["out"]) - before
    rows[0] |= {
        "limit": limit_ms,
        "full_share": (seen["full"] - full_before) / max(1, outputs),
        "missing": n - outputs,
    }
    return rows


@names("live/latency_500", "live/latency_500_broker")
def latency_500() -> list[dict]:
    """The full flow at 500 events/s: intended send time to consumed output."""
    return _latency(500, 5.0)


@names("live/latency_2000", "live/latency_2000_broker")
def latency_2000() -> list[dict]:
    """The full flow at 2,000 events/s."""
    return _latency(2000, 10.0)

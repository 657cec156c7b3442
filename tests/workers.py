"""Worker processes, topics and readers for the live tests; against STREAMAI_BOOTSTRAP where it is set."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streamai.broker import start_broker_process
from streamai.engine import Engine
from streamai.wire.codec import Codec
from tests.made import ITEMS, eagerness

ROOT = pathlib.Path(__file__).parents[1]
START_NS = 1_700_000_000_000_000_000
WAIT_S = 120.0  # a first start compiles; nothing is timed here

MODULE = """
from features.clicks import UserClicks
from streamai import live
from streamai.flow import Flow
from tests.made import ITEMS, eagerness

def decide(scored, events):
    if (events.columns[:, 0] == 666.0).any():
        raise ZeroDivisionError("the number of the beast")
    return scored.target

flow = Flow(name="{name}", source="{source}", views=(UserClicks,), decide=decide, budget_ms=1000.0{more})
app = live.app(flow)

@app.agent(app.batches, supervisor_strategy=live.CrashingSupervisor)
async def work(stream):
    async for batch in stream:
        await app.pump.take(batch)
"""


@contextlib.contextmanager
def bootstrap():
    """Address of the broker of the tests: the user's own, or the embedded one."""
    given = os.environ.get("STREAMAI_BOOTSTRAP")
    if given:
        yield given
        return
    with start_broker_process() as broker:
        yield broker.bootstrap


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Stage:
    """A flow's module in a folder of its own, its topic, and its workers."""

    def __init__(
        self,
        address: str,
        folder: pathlib.Path,
        partitions: int = 4,
        scorer: bool = False,
        catalogue: bool = False,
        model: pathlib.Path | None = None,
        merge: str = "",
        **env: str,
    ) -> None:
        """scorer: the flow has a catalogue and a scorer of the user's own, tests.made.eagerness;
        catalogue: it recommends the items i0 .. i49, of categories a and b in turn; by this model, if any."""
        self.address, self.folder, self.partitions, self.env = address, folder, partitions, env
        self.name = "t" + uuid.uuid4().hex[:10]
        self.source, self.scorer = self.name + "-clicks", scorer
        more = f', catalogue=ITEMS, scorer=eagerness, output="{self.name}-scores"' if scorer else ""
        self.items = folder / "items.csv" if catalogue else None
        if catalogue:
            lines = [f"i{i},{'ab'[i % 2]}" for i in range(50)]
            self.items.write_text("\n".join(["id,category", *lines]))
            more = f', catalogue="{self.items}", output="{self.name}-recommendations"'
            more += f', model="{model}", merge="{merge}"' if model else ""
        self.model = model
        module = MODULE.format(name=self.name, source=self.source, more=more)
        (folder / f"{self.name}.py").write_text(module)
        admin = AdminClient({"bootstrap.servers": address})
        admin.create_topics([NewTopic(self.source, partitions, 1)])[self.source].result(20)
        self.sent: dict[int, list[bytes]] = {p: [] for p in range(partitions)}
        self.workers: list[subprocess.Popen] = []

    def flow(self):
        """The flow of the module, in this process."""
        from features.clicks import UserClicks
        from streamai.flow import Flow

        if self.items is not None:
            return Flow(
                name=self.name, source=self.source, views=(UserClicks,), catalogue=self.items,
                output=f"{self.name}-recommendations", model=self.model,
            )  # fmt: skip
        if not self.scorer:
            return Flow(name=self.name, source=self.source, views=(UserClicks,))
        return Flow(
            name=self.name, source=self.source, views=(UserClicks,), catalogue=ITEMS, scorer=eagerness,
            output=f"{self.name}-scores",
        )  # fmt: skip

    def produce(self, n: int, values=None) -> None:
        """n clicks of 97 users, each user in one partition; or these values, into partition 0."""
        producer = Producer({"bootstrap.servers": self.address, "linger.ms": 5})
        made = [(0, v) for v in values] if values is not None else (self._click() for _ in range(n))
        for partition, value in made:
            while True:
                try:
                    producer.produce(self.source, value, partition=partition)
                    break
                except BufferError:
                    producer.poll(0.05)
            self.sent[partition].append(value)
        assert producer.flush(30) == 0

    def _click(self) -> tuple[int, bytes]:
        i = sum(map(len, self.sent.values()))
        user = i * 31 % 97
        return user % self.partitions, click(i, user)

    def start(self, *command: str, **env: str) -> Worker:
        port = free_port()
        command = command or ("-m", "streamai", "worker", self.name, "--loglevel", "warn")
        settings = {
            "STREAMAI_BOOTSTRAP": self.address,
            "STREAMAI_FOLDER": str(self.folder / "state"),
            "STREAMAI_WEB__PORT": str(port),
            "STREAMAI_SESSION_TIMEOUT_MS": "2000",
            "PYTHONPATH": str(ROOT),
        }
        log = open(self.folder / f"{self.name}.log", "ab")  # noqa: SIM115 (the process keeps it)
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=os.environ | settings | self.env | env,
            stdout=log,
            stderr=log,
        )
        log.close()
        self.workers.append(process)
        return Worker(process, port, self.log)

    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")[-6000:]

    def read(self, topic: str, n: int, seconds: float = WAIT_S) -> list:
        """All records of an output topic, once there are n different ids (headers or values)."""
        consumer = Consumer(
            {"bootstrap.servers": self.address, "group.id": "reader", "enable.auto.commit": False}
        )
        consumer.assign([TopicPartition(topic, p, 0) for p in range(self.partitions)])
        out, ids, end, quiet = [], set(), time.monotonic() + seconds, 0.0
        while time.monotonic() < end and (len(ids) < n or time.monotonic() < quiet):
            got = consumer.consume(1000, 0.1)
            if not got and all(w.poll() is not None for w in self.workers):
                break  # nobody is left to write more
            for message in got:
                if message.error():
                    continue
                out.append(message)
                ids.add(id_of(message))
                quiet = time.monotonic() + 0.5
        consumer.close()
        assert len(ids) >= n, f"{len(ids)} of {n} in {topic}; the worker's log ends with\n{self.log()}"
        return out

    def expected(self, skip=(), output: str = "features") -> dict[bytes, bytes]:
        """id -> value of an output topic, by an engine in this process over the same records."""
        out = {}
        for partition, values in self.sent.items():
            flow = self.flow()
            engine = Engine(flow, partition)
            codec = Codec(flow, engine)
            kept = [(i, v) for i, v in enumerate(values) if (partition, i) not in skip]
            offsets = np.array([i for i, _ in kept], np.int64)
            late_ts = np.zeros(len(kept), np.int64)
            events = codec.decoder.decode([v for _, v in kept], offsets, late_ts, self.source, partition)
            at = 0
            while at < len(events):
                scored = engine.step(events[at:], 3)
                for value in codec.encode(scored)[flow.topics[output]][0]:
                    out[json.loads(value)["id"].encode()] = value
                at += len(scored)
                engine.checkpoint()
        return out

    def stop(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.kill()
            process.wait()


class Worker:
    """A running worker process and its web pages."""

    def __init__(self, process: subprocess.Popen, port: int, log) -> None:
        self.process, self.port, self.log = process, port, log

    def get(self, page: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{page}", timeout=5) as answer:
            return json.load(answer)

    def text(self, page: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{page}", timeout=5) as answer:
            return answer.read().decode()

    def wait_for(self, page: str, holds) -> dict:
        """The page's object, as soon as it satisfies `holds`."""
        end, got = time.monotonic() + WAIT_S, None
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the worker ended:\n{self.log()}"
            with contextlib.suppress(OSError):
                got = self.get(page)
                if holds(got):
                    return got
            time.sleep(0.05)
        raise AssertionError(f"/{page} stayed at {got}; the worker's log ends with\n{self.log()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def click(i: int, user: int, **fields) -> bytes:
    """One click as JSON."""
    made = {"user_id": f"u{user}", "item_id": f"i{i % 50}", "kind": ("view", "buy")[i % 5 == 0]}
    made |= {"event_ts_ns": START_NS + i * 1_000_000, "price": float(i % 7)}
    return json.dumps(made | fields).encode()


def request(user: str, **fields) -> bytes:
    """One request as JSON."""
    return json.dumps({"user_id": user, "kind": "request"} | fields).encode()


def ask(stage: Stage, *words: str) -> dict:
    """The answer that `streamai ask` prints as its last line; AssertionError with what it says else."""
    return command(stage, "ask", "--flow", stage.name, *words)


def command(stage: Stage, *words: str) -> dict:
    """What a command prints as its last line, JSON; AssertionError with what it says if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "streamai", *words], cwd=stage.folder,
        env=os.environ | {"STREAMAI_BOOTSTRAP": stage.address, "PYTHONPATH": str(ROOT)} | stage.env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def id_of(message) -> bytes:
    headers = dict(message.headers() or ())
    return headers.get("id") or json.loads(message.value())["id"].encode()

"""What runs in a demo: an embedded broker, a worker for each flow, made events. Everything ends with it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

from streamai import settings
from streamai.errors import DeclarationError, StreamaiError

BROKEN = (b"{", b"\xff\xfe", b'{"kind":"view"}', b"[]", b"")
"""Events that no schema accepts; the demo puts them in on purpose."""
BROKEN_EVERY = 1000


class Worker:
    """A `streamai worker` process; what it prints is in its log file."""

    def __init__(self, flow: str, folder: pathlib.Path, bootstrap: str) -> None:
        self.flow, self.log = flow, folder / f"{flow}.log"
        self.port, self.asked = free_port(), False
        environment = {k: v for k, v in os.environ.items() if k not in settings.variables()} | {
            "STREAMAI_BOOTSTRAP": bootstrap,
            "STREAMAI_STATE__FOLDER": str(folder / "state"),
            "STREAMAI_WEB__PORT": str(self.port),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamai", "worker", flow],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the demo only, which then ends its children
            )

    def check(self) -> None:
        """StreamaiError, with the end of its log, when it has ended."""
        if self.process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            code = self.process.returncode
            raise StreamaiError(f"the worker of {self.flow} ended with code {code}:\n{tail}")

    def ready(self) -> bool:
        """Whether it has its partitions."""
        self.check()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as answer:
                return bool(json.load(answer).get("ready"))
        except (OSError, ValueError):
            return False

    def ask_to_end(self) -> None:
        """SIGTERM, once: a second one would kill it in the middle of ending in order."""
        if not self.asked and self.process.poll() is None:
            self.asked = True
            self.process.terminate()

    def stop(self, timeout_s: float = 15.0) -> int:
        """Ask it to end and wait; the exit code. Killed when it does not listen."""
        self.ask_to_end()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Stage:
    """Folder, broker and workers of a demo. Use in a `with`: nothing is left running after it."""

    def __init__(self, folder: pathlib.Path, flows: tuple[str, ...]) -> None:
        self.folder, self.flows = folder, flows
        self.workers: list[Worker] = []
        self.broker = None

    def __enter__(self) -> Stage:
        mine = not self.folder.exists() or (self.folder / ".demo").exists()
        if not mine and any(self.folder.iterdir()):
            raise DeclarationError(f"{self.folder} is not a demo's folder; name an empty one with --folder")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / ".demo").touch()
        (self.folder / "state").mkdir()
        return self

    def start_broker(self, partitions: int) -> str:
        """Start the broker; its address."""
        from streamai.broker.process import start_broker_process

        self.broker = start_broker_process(partitions=partitions)
        return self.broker.bootstrap

    def start_workers(self, timeout_s: float = 240.0) -> None:
        """Start a worker a flow and wait until all have their partitions."""
        for flow in self.flows:
            self.workers.append(Worker(flow, self.folder, self.broker.bootstrap))
        until = time.monotonic() + timeout_s
        while not all(w.ready() for w in self.workers):
            if time.monotonic() > until:
                raise StreamaiError(f"workers not ready in {timeout_s:.0f} s; see {self.folder}/*.log")
            time.sleep(0.1)

    def stop_workers(self) -> list[int]:
        """End the workers in order; their exit codes."""
        for worker in self.workers:
            worker.ask_to_end()
        return [worker.stop() for worker in self.workers]

    def __exit__(self, *exc) -> None:
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.stop(5.0 if exc[0] is None else 3.0)
        if self.broker is not None:
            with contextlib.suppress(OSError):
                self.broker.stop()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def warm(flows: tuple[str, ...]) -> None:
    """Compile the kernels in a process of its own, so that two workers do not do it at once."""
    command = [sys.executable, "-m", "streamai", "warm", *flows]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(command[1:])
        raise StreamaiError(f"{words} failed with code {done.returncode}:\n{done.stderr[-2000:]}")


def made_events(n: int, schema) -> tuple[list[bytes], list[bytes]]:
    """n made events of a schema as JSON, with a few broken ones among them; values and keys.

    The newest has the time of now: an event that claims to come from the future would be a dead letter.
    """
    from streamai.wire.encode import encode_events

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        generate = importlib.import_module("replay_data.generate")
    except ModuleNotFoundError as e:
        here = os.getcwd()
        raise DeclarationError(f"no replay_data/generate.py in {here}; run from the project's root") from e
    make = generate.stream_clicks if schema.name == "clicks" else generate.stream_market
    columns = make(n, generate.SEED + 1)
    columns["event_ts_ns"] = columns["event_ts_ns"] + (time.time_ns() - int(columns["event_ts_ns"].max()))
    values = encode_events(schema, columns)
    keys = [k.encode() for k in columns[schema.key].tolist()]
    for k, at in enumerate(range(BROKEN_EVERY // 2, n, BROKEN_EVERY)):
        values.insert(at + k, BROKEN[k % len(BROKEN)])
        keys.insert(at + k, keys[at + k])
    return values, keys

"""Live = replay, shown from outside with the commands a user has: `python -m tests.prove [--events N]`.

Made events go through the broker into a worker, which is killed without warning in the middle and started
again; both the source and the outputs are recorded; the recorded events are replayed in batches of 1, 7 and
256 with the tiers that were served; every output value has to be the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from replay_data.generate import generate
from streamai.broker.process import start_broker_process
from tests.workers import free_port

ROOT = Path(__file__).parent.parent
FLOWS = {"agents.recommend": ("clicks", "recommendations"), "agents.trade": ("market", "signals")}
BATCHES = (1, 7, 256)
WAIT_S = 600.0


def command(*words: str, env: dict | None = None, check: bool = True) -> dict:
    """Run `streamai WORDS --json`; its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "streamai", *words, "--json"],
        cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if (check and done.returncode) or not done.stdout:
        raise SystemExit(f"streamai {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Worker:
    """A worker process of a flow, its state in `folder`."""

    def __init__(self, flow: str, bootstrap: str, folder: Path) -> None:
        self.port = free_port()
        env = {
            "STREAMAI_BOOTSTRAP": bootstrap, "STREAMAI_FOLDER": str(folder / "state"),
            "STREAMAI_WEB__PORT": str(self.port), "STREAMAI_SESSION_TIMEOUT_MS": "3000",
        }  # fmt: skip
        self.log = (folder / f"{flow}.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamai", "worker", flow, "--loglevel", "warn"],
            cwd=ROOT, env=os.environ | env, stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def taken(self) -> int:
        """Events below the fences of its partitions; 0 while it starts."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=2) as answer:
                return sum(json.load(answer)["fence"].values())
        except (OSError, ValueError, KeyError):
            return 0

    def wait_for(self, events: int) -> None:
        until = time.monotonic() + WAIT_S
        while self.taken() < events:
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the worker stands at {self.taken()} of {events}; see {self.log.name}")
            time.sleep(0.1)


def prove(flow: str, events: int, partitions: int, rate: float, folder: Path) -> list[dict]:
    """One row for every output and batch size of the replay."""
    source, result = FLOWS[flow]
    generate(clicks=events, market=events, seed=11, out=folder)
    with start_broker_process(partitions=partitions) as broker:
        at = broker.bootstrap
        first = Worker(flow, at, folder)
        path = str(folder / f"{source}.parquet")
        words = ["-m", "streamai", "produce", path, source, "--bootstrap", at]
        words += ["--partitions", str(partitions), "--rate", str(rate)]
        feeding = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
        first.wait_for(events // 2)
        first.process.kill()  # no warning: what is not checkpointed is lost and read again
        second = Worker(flow, at, folder)
        if feeding.wait(WAIT_S):
            raise SystemExit("streamai produce failed")
        second.wait_for(events)
        second.process.terminate()
        second.process.wait(60)
        for topic in (source, result, f"{source}.features"):
            command("record", topic, str(folder / f"{topic}.rec.parquet"), "--bootstrap", at)
    rows = []
    for batch in BATCHES:
        out = str(folder / f"again{batch}.parquet")
        recorded = str(folder / f"{result}.rec.parquet")
        command("replay", flow, "--events", str(folder / f"{source}.rec.parquet"), "--tiers", "recorded",
                "--recorded", recorded, "--batch", str(batch), "--out", out)  # fmt: skip
        for topic, output in ((result, result), (f"{source}.features", "features")):
            record = str(folder / f"{topic}.rec.parquet")
            said = command("parity", record, out, "--topic", output, check=False)
            rows.append({"flow": flow, "topic": topic, "batch": batch, "partitions": partitions, **said})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="of each flow")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4_000.0, help="events/s offered")
    parser.add_argument("--flow", choices=sorted(FLOWS), action="append")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = []
    for flow in args.flow or FLOWS:
        with tempfile.TemporaryDirectory() as folder:
            rows += prove(flow, args.events, args.partitions, args.rate, Path(folder))
    for r in rows:
        verdict = "identical" if r["identical"] else "DIFFERENT"
        print(f"{r['topic']:<18} batch {r['batch']:>3}, {r['partitions']} partitions, killed once: "
              f"{verdict}, {r['compared']:,} values, {r['duplicates']:,} doubles")  # fmt: skip
    if args.json:
        print(json.dumps({"identical": all(r["identical"] for r in rows), "rows": rows}))
    return 0 if rows and all(r["identical"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""`streamai demo`: broker, workers and made events on this machine, watched live, then proved by replay."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import io
import json
import pathlib
import signal
import sys
import time

from streamai.errors import DeclarationError, StreamaiError

FLOWS = ("agents.recommend", "agents.trade")
PARTITIONS = 2
DRAIN_S = 15.0  # without a single new outcome: something is lost
LEAD_S = 0.5  # until the first event is due: the watcher is connected by then

PLANTED = (
    "The events are made. The trading signal in them is planted: that it is found shows that the machinery "
    "works. It proves nothing about profit, here or anywhere."
)
NEXT = """\
What to try next
  streamai state get {user} --flow agents.recommend --folder {folder}/state/{recommend}
  streamai plan agents.recommend                 what is kept of a user, and what a million of them need
  streamai backtest agents.trade --events replay_data/market.parquet
  streamai replay agents.recommend --events YOUR.csv --map user_id=... --out out.parquet
README.md goes on from there: your own features, your own Kafka."""


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "demo",
        help="start everything on this machine, feed it, watch it, prove that live equals replay",
        description="Starts a broker and a worker each for agents.recommend and agents.trade, feeds "
        "both at a fixed rate, shows what comes out, then replays what was recorded and compares every byte. "
        "Exit code 0 only if they are equal. Ctrl-C ends it and everything it started.",
    )
    p.add_argument("--seconds", type=_positive, default=20.0, help="how long to feed (20)")
    p.add_argument("--rate", type=_positive, default=400.0, help="events/s of each topic (400)")
    p.add_argument("--headless", action="store_true", help="plain lines, also in a terminal")
    p.add_argument("--folder", default=".streamai/demo", help="of logs, state and recordings; emptied first")
    p.add_argument("--json", action="store_true", help="last line is one JSON object, as without a terminal")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def run(args) -> int:
    from streamai.cli._demo_stage import Stage

    plain = args.headless or not sys.stdout.isatty()
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    with Stage(pathlib.Path(args.folder), FLOWS) as stage:
        report = play(stage, args, plain)
    report["seconds"] = round(time.monotonic() - began, 1)
    summary(report, args.folder)
    if plain or args.json:
        print(json.dumps(report), flush=True)
    return 0 if report["parity"] else 1


def _interrupt(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the children are being ended
    raise KeyboardInterrupt


def note(text: str) -> None:
    """A line about what happens now."""
    print(f"- {text}", flush=True)


def play(stage, args, plain: bool) -> dict:
    """The whole demo on a stage; the figures of its last line."""
    from streamai.cli._demo_stage import made_events, warm
    from streamai.cli._demo_watch import Line
    from streamai.flow import load
    from streamai.kernels import SOURCES_DIGEST
    from streamai.live.openloop import Feed

    flows = [load(name) for name in stage.flows]
    if len({f.name for f in flows}) < len(flows):
        raise DeclarationError("the demo's flows have one name; give each its own")
    warmed = stage.folder.parent / f"warm-{SOURCES_DIGEST}"
    if not warmed.exists():
        note("compiling the kernels, once for this machine (about a minute)")
        warm(stage.flows)
        warmed.touch()
    n = int(args.seconds * args.rate)
    note(f"making {n:,} clicks and {n:,} market events")
    lines = []
    for flow in flows:
        values, keys = made_events(n, flow.schema)
        feed = Feed(flow.source, values, keys, args.rate, PARTITIONS)
        lines.append(Line(flow, feed, titles(flow)))
    note("starting the broker and two workers")
    bootstrap = stage.start_broker(PARTITIONS)
    asyncio.run(_topics(bootstrap, flows))
    stage.start_workers()
    note(f"feeding both topics at {args.rate:.0f} events a second for {args.seconds:.0f} s")
    asyncio.run(_stream(stage, bootstrap, lines, args.seconds, plain))
    note("ending the workers; recording, replaying, comparing")
    codes = stage.stop_workers()
    if any(codes):
        raise StreamaiError(f"workers ended with codes {codes}; see {stage.folder}/*.log")
    compared = {name: prove(stage, name, line) for name, line in zip(stage.flows, lines)}
    return {
        "parity": all(p["identical"] for outputs in compared.values() for p in outputs.values()),
        "rate": args.rate,
        "flows": {line.flow.name: line.figures() for line in lines},
        "compared": compared,
        "user": next((e["key"] for e in lines[0].latest), ""),
        "recommend": flows[0].name,
    }


def titles(flow) -> dict[str, str]:
    """Item id -> title; empty for a flow without a catalogue."""
    from streamai.catalogue import Catalogue

    if flow.catalogue is None:
        return {}
    catalogue = flow.catalogue if isinstance(flow.catalogue, Catalogue) else Catalogue.load(flow.catalogue)
    return {i: t or i for i, t in zip(catalogue.ids, catalogue.titles)}


async def _topics(bootstrap: str, flows) -> None:
    from streamai.live.topic import make_topic

    for topic in [t for f in flows for t in (f.source, *f.topics.values())]:
        await make_topic({"bootstrap_servers": bootstrap}, topic, PARTITIONS)


async def _stream(stage, bootstrap: str, lines, seconds: float, plain: bool) -> None:
    """Feed all lines and watch their outputs until every event has an outcome."""
    from streamai.live.openloop import feed, watch

    stop, by_topic = asyncio.Event(), {t: line for line in lines for t in line.topics}

    def take(record, now_ns: int) -> None:
        by_topic[record.topic].take(record, now_ns)

    watcher = asyncio.create_task(watch(bootstrap, dict.fromkeys(by_topic, PARTITIONS), take, stop))
    gc.collect()
    gc.freeze()  # a full collection over numba's heap would stop feeder and watcher for a tenth of a second
    gc.set_threshold(50_000, 20, 100)
    feeder = asyncio.create_task(feed(bootstrap, [line.feed for line in lines], LEAD_S, stop))
    try:
        with _screen(lines, plain) as show:
            await _until_done(stage, lines, (watcher, feeder), seconds, show)
    finally:
        stop.set()
        await asyncio.gather(watcher, feeder, return_exceptions=True)


async def _until_done(stage, lines, tasks, seconds: float, show) -> None:
    """Show what happens until all fed events have an outcome; StreamaiError when that does not come."""
    watcher, feeder = tasks
    done, moved = -1, time.monotonic()
    while True:
        for task in tasks:
            if task.done():
                task.result()  # raises what it raised
        for worker in stage.workers:
            worker.check()
        began_ns = lines[0].feed.start_ns or time.time_ns()
        show(max(0.0, seconds - (time.time_ns() - began_ns) / 1e9))
        if feeder.done() and all(line.lag() == 0 for line in lines):
            return
        now = sum(line.done for line in lines)
        if now != done:
            done, moved = now, time.monotonic()
        elif time.monotonic() - moved > DRAIN_S:
            left = {line.flow.source: line.lag() for line in lines}
            raise StreamaiError(f"events without an outcome: {left}; see {stage.folder}/*.log")
        await asyncio.sleep(0.25)


@contextlib.contextmanager
def _screen(lines, plain: bool):
    """A function that shows the lines: a live screen, or a plain line every two seconds."""
    from streamai.cli import _demo_watch

    if plain:
        last = [0.0]

        def show(left_s: float) -> None:
            rates = _demo_watch.plain(lines)
            if time.monotonic() - last[0] >= 2.0:
                last[0] = time.monotonic()
                print(f"  {rates}", flush=True)

        yield show
        return
    from rich.live import Live

    with Live(_demo_watch.view(lines, 0.0), refresh_per_second=4) as live:
        yield lambda left_s: live.update(_demo_watch.view(lines, left_s))


def prove(stage, module: str, line) -> dict:
    """Record a flow's topics, replay its source, compare its outputs; by output, what `parity` says."""
    flow, folder, bootstrap = line.flow, stage.folder, stage.broker.bootstrap
    outputs = [flow.topics["result"]] + ([flow.topics["features"]] if flow.publish_features else [])
    for topic in (flow.source, *outputs):
        command("record", topic, f"{folder}/{topic}.parquet", "--bootstrap", bootstrap)
    replayed = f"{folder}/{flow.source}.replayed.parquet"
    recorded = f"{folder}/{flow.topics['result']}.parquet"
    command(
        "replay", module, "--events", f"{folder}/{flow.source}.parquet", "--out", replayed,
        "--tiers", "recorded", "--recorded", recorded,
    )  # fmt: skip
    found = {t: command("parity", f"{folder}/{t}.parquet", replayed, codes=(0, 1)) for t in outputs}
    for topic, said in found.items():
        how = "identical" if said["identical"] else f"NOT identical: {said['first']}"
        note(f"{topic}: {said['compared']:,} outputs, {how}")
    return found


def command(*words: str, codes: tuple[int, ...] = (0,)) -> dict:
    """Run a streamai command as a user would, with --json; the object that it prints last."""
    from streamai.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*words, "--json"])
    if code == 130:
        raise KeyboardInterrupt
    if code not in codes:
        raise StreamaiError(f"streamai {' '.join(words)} ended with code {code}")
    return json.loads(out.getvalue().strip().splitlines()[-1])


def summary(report: dict, folder: str) -> None:
    """What happened, for people."""
    print()
    for name, f in report["flows"].items():
        total = f["latency_ms"]["total"]
        tiers = ", ".join(f"{t} {share:.1%}" for t, share in f["tiers"].items())
        print(
            f"{name}: {f['scored']:,} of {f['sent']:,} events scored, {f['late']} late, {f['dead']} dead "
            f"letters (broken on purpose); intended send to consumed output p50 {total['p50']:.1f}, "
            f"p99 {total['p99']:.1f}, max {f['latency_max_ms']:.1f} ms; {tiers}"
        )
    click, market = list(report["flows"].values())
    if click["hit_ratio"] is not None:
        print(f"{click['hit_ratio']:.1%} of next items were in the list served before.")
    if market["hit_ratio"] is not None:
        print(f"{market['hit_ratio']:.1%} of mid moves within 1 s went the way of the signal.")
    print("Live and replay are identical, byte for byte." if report["parity"] else "Live and replay DIFFER.")
    print(f"\n{PLANTED}\n\n{NEXT.format(folder=folder, **report)}\n")

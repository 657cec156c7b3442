"""`streamai stats`: what a running worker has counted, from its web endpoint."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

from streamai import settings
from streamai.errors import StreamaiError


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "stats",
        help="show latency and throughput of a running worker",
        description="Reads /stats of a worker's web endpoint; Prometheus finds the same at /metrics.",
    )
    p.add_argument("--url", help="address of the worker's web endpoint; default: web.host and web.port")
    p.add_argument("--watch", type=float, metavar="SECONDS", help="again and again, with events/s between")
    p.add_argument("--json", action="store_true", help="one JSON object")


def run(args) -> int:
    url = (args.url or _default_url()).rstrip("/") + "/stats"
    before = None
    while True:
        now = read(url)
        print(json.dumps(now), flush=True) if args.json else show(now, before, args.watch)
        if not args.watch:
            return 0
        before = now
        time.sleep(args.watch)


def _default_url() -> str:
    web = settings.load().web
    host = "127.0.0.1" if web.host == "0.0.0.0" else web.host
    return f"http://{host}:{web.port}"


def read(url: str, timeout_s: float = 5.0) -> dict:
    """The worker's counters; StreamaiError when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return json.load(answer)
    except (OSError, ValueError) as e:
        raise StreamaiError(
            f"no worker answers at {url} ({e}); start one with `streamai worker FLOW`, or name its --url"
        ) from e


def show(now: dict, before: dict | None, seconds: float | None) -> None:
    """Counters for people."""
    events, total = now["events"], sum(now["events"].values())
    rate = f"  {(total - sum(before['events'].values())) / seconds:,.0f}/s" if before else ""
    shown = ", ".join(f"{n:,} {name}" for name, n in events.items() if n or name == "scored")
    print(f"{now['flow']}: {shown}{rate}")
    scored = max(1, sum(now["tiers"].values()))
    print("tiers: " + ", ".join(f"{name} {n / scored:.1%}" for name, n in now["tiers"].items() if n))
    print(f"lag: {sum(now['lag'].values()):,} records in {len(now['lag'])} partition(s)")
    print(f"{'stage':12} {'n':>12} {'p50 us':>12} {'p99 us':>12} {'p99.9 us':>12} {'max us':>12}")
    for name, s in now["stages"].items():
        if s["n"]:
            figures = " ".join(f"{s[k]:12,.1f}" for k in ("p50_us", "p99_us", "p999_us", "max_us"))
            print(f"{name:12} {s['n']:12,} {figures}")
    for topic, value in now.get("latest", {}).items():
        print(f"latest of {topic}: {value[:200]}")

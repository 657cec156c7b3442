"""`streamai warm`: compile the kernels after an installation or a change, and show what a step costs here."""

from __future__ import annotations

import json
import time


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "warm",
        help="compile the kernels and measure the cost table",
        description="Kernels are compiled once for each machine and kept on disk; a worker that finds none "
        "compiles them before it takes partitions. The cost table decides tiers; a worker measures its own.",
    )
    p.add_argument("flow", nargs="*", default=["agents.recommend", "agents.trade"], help="modules of flows")
    p.add_argument("--json", action="store_true", help="one JSON object")


def run(args) -> int:
    from streamai.deadline import TIER_NAMES, Tier
    from streamai.flow import load
    from streamai.kernels import SOURCES_DIGEST
    from streamai.live.cost import measure_cost

    report = {}
    for name in args.flow:
        flow = load(name)
        began = time.monotonic()
        cost = measure_cost(flow)
        report[name] = {
            "seconds": round(time.monotonic() - began, 2),
            "call_us": cost.call_ns / 1e3,
            "event_us": {TIER_NAMES[t]: cost.event_ns[t] / 1e3 for t in (Tier.FULL, Tier.RANK, Tier.PRIOR)},
        }
        if not args.json:
            r = report[name]
            tiers = ", ".join(f"{tier} {us:.1f}" for tier, us in r["event_us"].items())
            print(f"{name}: {r['seconds']:.1f} s; us a call {r['call_us']:.1f}, us an event: {tiers}")
    if args.json:
        print(json.dumps({"kernels": SOURCES_DIGEST, "flows": report}))
    return 0

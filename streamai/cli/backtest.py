"""`streamai backtest FLOW --events FILE`: what the flow's targets would have made, fees and time charged."""

from __future__ import annotations

import argparse
import json
import math


def add(subparsers) -> None:
    from streamai.cli.inputs import add_mapping

    p = subparsers.add_parser(
        "backtest",
        help="trade a flow's targets on history",
        description="Replays the events through the flow's engine and fills its targets at the best prices, "
        "after a latency and the time that scoring takes, drawn from a measured histogram. The same command "
        "gives the same bits. Profit is not claimed; what is left out stands under the table.",
    )
    p.add_argument("flow", help="module with `flow = Flow(...)` that has decide=, such as agents.trade")
    p.add_argument("--events", required=True, help="parquet, CSV or NDJSON, or a recorded topic")
    p.add_argument("--model", help="weights file in place of the flow's")
    p.add_argument(
        "--latency-ms", type=_not_negative, default=1.0, help="from a score to the book, compute apart (1)"
    )
    p.add_argument("--fee-bp", type=_finite, default=0.5, help="fee in bp of a trade's notional (0.5)")
    p.add_argument("--size", type=_positive, default=1.0, help="quantity of one unit of target (1)")
    p.add_argument("--seed", type=int, default=7, help="of the draws of compute time (7)")
    p.add_argument("--instrument", help="test this one only")
    p.add_argument(
        "--from", dest="start", type=_share, default=0.0, metavar="SHARE",
        help="share of time that is fed but not traded; 0.6 where `train --protocol prequential` fitted (0)",
    )  # fmt: skip
    p.add_argument("--compute-histogram", metavar="FILE", help="compute times; default: the shipped ones")
    p.add_argument("--measure", metavar="FILE", help="measure compute times first, into FILE; use them")
    p.add_argument("--json", action="store_true", help="last line is one JSON object")
    p.set_defaults(items=None)
    add_mapping(p)


def run(args) -> int:
    from streamai.backtest import report
    from streamai.backtest.latency import Histogram
    from streamai.backtest.run import Terms, backtest, check, measure_flow
    from streamai.cli.inputs import flow_of, mapping_of

    mapping = mapping_of(args)
    flow = flow_of(args, mapping)
    check(flow)
    compute = Histogram.load(args.compute_histogram) if args.compute_histogram else None
    if args.measure:
        compute = measure_flow(flow, args.events, mapping)
        compute.save(args.measure)
    terms = Terms(args.latency_ms, args.fee_bp, args.size, args.seed, compute, args.instrument, args.start)
    result = backtest(flow, args.events, terms, mapping, args.sort)
    print(json.dumps(result) if args.json else "\n".join(report.lines(result)))
    return 0


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _share(text: str) -> float:
    value = _finite(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of time, from 0 to below 1")
    return value


def _not_negative(text: str) -> float:
    value = _finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value

"""`streamai study FLOW --events FILE`: a market signal beside its baselines, out of time, with intervals."""

from __future__ import annotations

import json

from streamai.cli.inputs import add_mapping, whole


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "study",
        help="measure a market signal beside its baselines",
        description="Labels of four kinds at any horizon, thresholds fitted on the past alone; purged splits "
        "that walk forward in time; majority, persistence, logistic regression, LightGBM, BiN-CTABL and the "
        "signal head with and without the LM on the same rows. Needs the extra `train`, and LightGBM.",
    )
    p.add_argument("flow", help="module of a market flow, such as agents.trade")
    p.add_argument("--events", required=True, help="parquet, CSV or NDJSON")
    add_mapping(p)
    p.add_argument("--model", required=True, help="weights whose LM was fitted before the first test part")
    p.set_defaults(items=None)
    p.add_argument("--labels", nargs="+", default=["anchored"], help="point anchored smooth_both tradable")
    p.add_argument("--horizons", nargs="+", default=["10ev", "20ev", "50ev", "100ev"], help="(%(default)s)")
    p.add_argument("--models", nargs="+", help="which of them (all)")
    p.add_argument("--folds", type=whole(1), default=2, help="test parts, one after another (2)")
    p.add_argument("--share", type=float, default=0.6, help="share of time before the first test part (0.6)")
    p.add_argument("--json", action="store_true", help="one JSON object as the last line")


def run(args) -> int:
    from rich.console import Console

    from streamai.cli.inputs import flow_of, mapping_of
    from streamai.evaluate.study import judged
    from streamai.replay.read import read_events
    from streamai.train.study import MODELS, study

    mapping = mapping_of(args)
    flow = flow_of(args, mapping)
    table = read_events(args.events, flow.schema, mapping, sort=True)
    models = tuple(args.models or MODELS)
    told = study(
        flow, table, args.labels, args.horizons, args.folds, args.share, models, Console(stderr=True)
    )
    rows = [row for parts in told for row in judged(parts)]
    if args.json:
        print(json.dumps({"rows": rows}))
    else:
        _show(rows)
    return 0


def _show(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ("macro_f1", "accuracy", "mcc", "rank_ic")
    columns = ("label", "horizon", "rows", "model", *names, "ECE")
    table = Table(*columns, title="95 % intervals over blocks of time")
    for r in rows:
        cells = [f"{r[n]:.3f} [{r[n + '_low']:.3f}, {r[n + '_high']:.3f}]" for n in names]
        table.add_row(r["label"], r["horizon"], f"{r['n']:,}", r["model"], *cells, f"{r['ece']:.3f}")
    Console(width=170).print(table)

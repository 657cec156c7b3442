"""`streamai evaluate`: how good a flow is on history, without leaks."""

from __future__ import annotations

import argparse
import json

DESCRIPTION = """\
Click flows: lists judged by what the key took next, beside baselines asked at the same moments.
  prequential    fit on the first 60 % of time; then every event is judged by the list served before it
  leave-one-out  each key's last event; counts know its third-last, its own state the second-last
Market flows: correlation of signal and realised move by horizon, classes beside persistence and majority,
on what comes after the first 60 % of time.
"""


def add(subparsers) -> None:
    from streamai.cli.inputs import add_mapping, add_ring

    p = subparsers.add_parser("evaluate", help="measure a flow's quality on history", description=DESCRIPTION)
    p.add_argument("flow", help="module of the flow, such as agents.recommend")
    p.add_argument("--events", required=True, help="parquet, csv, ndjson or MovieLens .dat")
    p.add_argument("--protocol", default="prequential", choices=("leave-one-out", "prequential"))
    p.add_argument(
        "--model", nargs="+", metavar="FILE",
        help="weights file in place of the flow's, 'none' = without; of several (other seeds) mean and "
        "spread are shown, and the first is compared",
    )  # fmt: skip
    p.add_argument(
        "--beside", nargs="+", default=(), choices=("gru", "twin"),
        help="train these on the same events and judge them beside it (needs the extra `train`)",
    )  # fmt: skip
    p.add_argument("--epochs", type=int, default=20, help="of what --beside trains (20)")
    p.add_argument("--dropout", type=float, default=0.2, help="of what --beside trains (0.2)")
    p.add_argument("--budget-ms", type=float, help="a list that took longer is a miss (the flow's budget)")
    p.add_argument(
        "--trained-elsewhere",
        action="store_true",
        help="the model was trained on other events, as the demo's was",
    )
    p.add_argument("--items", help="catalogue in place of the flow's; 'events' = the items met in the events")
    add_ring(p)
    p.add_argument(
        "--online", metavar="REFRESH",
        help="the ranking head goes on learning; lists are made with what it knows (0s), or knew when the "
        "hour (1h) or day (1d) began",
    )  # fmt: skip
    p.add_argument("--online-rate", type=float, default=0.0002, help="step of its linear part (%(default)s)")
    p.add_argument("--online-bias-rate", type=float, default=0.02, help="of every item's bias (%(default)s)")
    p.add_argument("--partitions", type=int, default=1, help="spread the keys over so many engines (1)")
    p.add_argument(
        "--merge-every", type=int, default=0, metavar="EVENTS",
        help="merge what they count after every so many events of all; 0 = each counts for itself (0)",
    )  # fmt: skip
    p.add_argument("--sample", type=int, default=20_000, help="lists judged by prequential; 0 = all (20000)")
    p.add_argument("--fit", type=_share, default=0.6, help="share of time that is fitted on (0.6)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="last line is one JSON object")
    add_mapping(p)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return value


def run(args) -> int:
    from streamai.cli.inputs import flow_of, mapping_of
    from streamai.errors import DeclarationError, InputError
    from streamai.events import MARKET
    from streamai.replay.read import read_events, valid

    mapping = mapping_of(args)
    args.more, args.model = (args.model or [None])[1:], (args.model or [None])[0]
    flow = flow_of(args, mapping)
    table = read_events(args.events, flow.schema, mapping, sort=True)
    good = table.filter(valid(flow.schema))
    if not len(good):
        raise InputError(f"{args.events}: none of {len(table)} rows is a good event; see `streamai replay`")
    report = {"flow": flow.name, "events": len(table), "dead": len(table) - len(good)}
    if flow.schema.name == MARKET.name:
        if args.protocol != "prequential":
            raise DeclarationError("a market flow is evaluated prequentially: leave out --protocol")
        report |= _market(flow, good, args)
    else:
        report |= _clicks(flow, good, args)
    if args.json:
        print(json.dumps(_finite(report)))
    return 0


def _clicks(flow, table, args) -> dict:
    from streamai.evaluate import protocols
    from streamai.evaluate.recommend import evaluate
    from streamai.replay.progress import Progress

    if args.protocol == "leave-one-out":
        task = protocols.leave_one_out(table, flow.schema)
    else:
        task = protocols.prequential(table, flow.schema, args.fit, args.sample, args.seed)
    beside = [_beside(kind, flow, task, args) for kind in args.beside]
    with Progress("evaluate", (3 + 2 * len(args.more)) * len(task.table)) as bar:
        report = evaluate(
            flow, task, lambda name, n: bar.advance(n), args.trained_elsewhere, beside, args.more,
            args.budget_ms, (args.partitions, args.merge_every),
        )  # fmt: skip
    report = {"protocol": args.protocol, **task.facts, **report}
    if args.partitions > 1:
        report |= {"partitions": args.partitions, "merge_every": args.merge_every}
    if not args.json:
        _print_facts(report)
        titles = {
            "all": "all items",
            "new": "without items the key had, new targets only",
            "cold": "all items, targets with at most 5 events so far",
            "cold_among": "the same targets among the items with at most 5 events",
        }
        for mode, title in titles.items():
            _print_models(report["models"], report["paired"], mode, title)
        _print_windows(report["models"])
        _print_seeds(report.get("seeds", {}))
        speed = "  ".join(f"{k} {v:,.4g}" for k, v in report["speed"].items())
        print(f"{speed}  bytes_per_key {report['bytes_per_key']:,}  budget_ms {report['budget_ms']:g}")
    return report


def _beside(kind: str, flow, task, args):
    """A model trained here on what the flow's may have learnt from, and its outputs."""
    import numpy as np
    from rich.console import Console

    from streamai.evaluate.recommend import Beside
    from streamai.train.beside import answers
    from streamai.train.fit import Recipe

    learnt = ~task.frozen
    if "cut_ns" in task.facts:
        learnt = task.table["event_ts_ns"].to_numpy() < task.facts["cut_ns"]
    timed = args.protocol == "prequential"
    recipe = Recipe(epochs=args.epochs, seed=args.seed)
    given = answers(
        kind, flow, task.table, np.asarray(learnt), task.ask, recipe, args.dropout, timed,
        Console(stderr=True),
    )  # fmt: skip
    return Beside(**given)


def _market(flow, table, args) -> dict:
    from streamai.evaluate.market import evaluate
    from streamai.replay.progress import Progress

    with Progress("evaluate", len(table)) as bar:
        report = evaluate(flow, table, args.fit, bar.advance, args.trained_elsewhere)
    if not args.json:
        _print_facts(report)
        _print_horizons(report["horizons"])
    return report


def _print_facts(report: dict) -> None:
    print("  ".join(f"{k} {v:,}" for k, v in report.items() if isinstance(v, int)))


def _print_models(models: dict, paired: dict, mode: str, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ("hr@1", "hr@10", "hr@20", "hr@50", "ndcg@10", "mrr@20")
    table = Table(title=f"{title} ({next(iter(models.values()))[mode]['targets']:,} targets)")
    for column in ("model", *names, "coverage@10", "gini@10", "ndcg@10: the flow's less this"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, figures in models.items():
        f = figures[mode]
        cells = [f"{f[n]:.4f} ±{f[n + '_se']:.4f}" for n in names]
        less = paired[mode].get(model)
        beside = ""
        if less:
            beside = f"{less['ndcg@10']:+.4f} [{less['ndcg@10_low']:+.4f}, {less['ndcg@10_high']:+.4f}]"
        table.add_row(model, *cells, f"{f['coverage@10']:.3f}", f"{f['gini@10']:.3f}", beside)
    Console(width=170).print(table)


def _print_windows(models: dict) -> None:
    """How quality moves with time, where there is more than one window."""
    from rich.console import Console
    from rich.table import Table

    from streamai.evaluate.tally import WINDOW

    count = max(len(modes["all"]["ndcg@10_windows"]) for modes in models.values())
    if count < 2:
        return
    table = Table(title=f"NDCG@10 by {WINDOW:,} targets in the order of time, all items")
    for column in ("model", *(f"{k + 1}" for k in range(count))):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, modes in models.items():
        table.add_row(model, *(f"{v:.4f}" for v in modes["all"]["ndcg@10_windows"]))
    Console(width=170).print(table)


def _print_seeds(seeds: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    if not seeds:
        return
    names = ("hr@1", "hr@10", "hr@20", "hr@50", "ndcg@10", "mrr@20")
    table = Table("model", "judged by", *names, title="mean ± standard deviation over the models given")
    for model, modes in seeds.items():
        for mode, f in modes.items():
            table.add_row(model, mode, *(f"{f[n]['mean']:.4f} ±{f[n]['sd']:.4f}" for n in names))
    Console(width=150).print(table)


def _print_horizons(horizons: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="by horizon, ± standard error over blocks of time; ECE: confidence less share right")
    beside = ("persistence", "majority")
    for column in ("horizon", "events", "coverage", "IC", "RankIC", "accuracy", *beside, "macro-F1", *beside,
                   "confidence", "ECE"):  # fmt: skip
        table.add_column(column, justify="right")
    for name, h in horizons.items():
        pairs = [f"{h[k]:.4f} ±{h[k + '_se']:.4f}" for k in ("ic", "rank_ic", "accuracy")]
        others = [f"{h[k]:.4f}" for k in ("accuracy_persistence", "accuracy_majority")]
        f1 = f"{h['macro_f1']:.4f} ±{h['macro_f1_se']:.4f}"
        f1_others = [f"{h[k]:.4f}" for k in ("macro_f1_persistence", "macro_f1_majority")]
        table.add_row(name, f"{h['events']:,}", f"{h['coverage']:.3f}", *pairs, *others, f1, *f1_others,
                      f"{h['confidence']:.3f}", f"{h['ece']:.3f}")  # fmt: skip
    Console(width=170).print(table)


def _finite(value):
    """NaN as null: JSON has none."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and value != value else value

"""`streamai train FLOW --events FILE --out WEIGHTS`: the flow's model, fitted to history."""

from __future__ import annotations

import argparse
import json
import pathlib

from streamai.cli.inputs import add_mapping, add_ring, whole


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "train",
        help="train a flow's model and export it",
        description="Pre-trains the event-LM on the next event, then the ranking head (clicks) or the signal "
        "head (market) on what the flow's own engine served, and writes one weights file. Nothing is written "
        "when the served kernel and torch disagree. Needs the extra `train` (torch).",
    )
    p.add_argument("flow", help="module with `flow = Flow(...)`, such as agents.recommend")
    p.add_argument("--events", required=True, help="parquet, CSV or NDJSON, in order of arrival")
    add_mapping(p)
    p.add_argument("--items", help="catalogue file; `events` makes one of the items met in --events")
    add_ring(p)
    p.add_argument("--out", metavar="FILE", help="weights file to write (the flow's name + .weights)")
    p.add_argument(
        "--protocol", choices=("leave-one-out", "prequential", "all"), default="prequential",
        help="what is fitted on: all but the last two of each key; the first 60 %% of time; everything",
    )  # fmt: skip
    p.add_argument("--until", type=_share, help="share of time to fit on, in place of the protocol's")
    p.add_argument("--d", type=int, help="width of the LM, a multiple of 16 (64; a teacher: 128)")
    p.add_argument("--layers", type=whole(1), help="layers of the LM (2; a teacher: 5)")
    p.set_defaults(model=None)
    p.add_argument("--epochs", type=whole(1), help="passes over the events (30 for clicks, 4 for a market)")
    p.add_argument("--dropout", type=float, help="(0.2 for clicks, 0.1 for a market)")
    p.add_argument("--rate", type=float, help="learning rate (0.002; a teacher: 0.001)")
    p.add_argument(
        "--patience", type=whole(0), default=0, help="epochs without a better one that end it (never)"
    )
    p.add_argument(
        "--checkpoint", metavar="FILE", help="written after every epoch; a killed run goes on from it"
    )
    p.add_argument("--no-time", action="store_true", help="the LM sees no time gaps")
    p.add_argument("--no-head", action="store_true", help="the LM alone")
    p.add_argument(
        "--text", choices=("auto", "off"), default="auto",
        help="auto: item vectors begin with the catalogue's text where it has vectors (`streamai items`)",
    )  # fmt: skip
    p.add_argument(
        "--text-bound", type=float, default=0.5, metavar="X",
        help="greatest length of what an item's vector has beside its text (%(default)s)",
    )  # fmt: skip
    p.add_argument("--lm", metavar="FILE", help="take the LM of this weights file; fit the head only")
    p.add_argument(
        "--no-refit", action="store_true", help="keep the LM that ends where the head begins"
    )
    p.add_argument(
        "--fresh", action="store_true", help="the head also meets cold counts, as of a worker's first hours"
    )
    _add_teaching(p)
    _add_compression(p)
    p.add_argument("--hide-seen", action="store_true", help="candidates leave out what the key has met")
    p.add_argument("--seed", type=int, default=0, help="(0)")
    p.add_argument("--threads", type=whole(1), default=1, help="of torch (1)")
    p.add_argument(
        "--precision", choices=("auto", "f32", "bf16"), default="auto",
        help="of matrix products; auto: bf16 where the processor is fast at it",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="one JSON object as the last line")


def _add_teaching(p) -> None:
    group = p.add_argument_group("teacher and distillation")
    group.add_argument(
        "--teacher", action="store_true", help="train a teacher (a transformer), which is not served"
    )
    group.add_argument(
        "--answers", metavar="FOLDER", help="with --teacher: keep what it thinks of every event"
    )
    group.add_argument(
        "--of", nargs="+", default=(), metavar="FILE", help="with --answers: ask these models, train none"
    )
    group.add_argument("--nproc", type=whole(1), default=1, help="processes that train a teacher (1)")
    group.add_argument(
        "--parallel", choices=("data", "tensor", "pipeline"), default="data",
        help="how they share it: rows of a batch, heads and hidden units, or layers (%(default)s)",
    )  # fmt: skip
    group.add_argument("--distil", metavar="FOLDER", help="learn from a teacher's answers")
    group.add_argument(
        "--alpha",
        type=_share,
        default=0.3,
        help="share of the loss that is the next event's own (%(default)s)",
    )


def _add_compression(p) -> None:
    group = p.add_argument_group("compression, in this order; what a step costs and saves is reported")
    group.add_argument(
        "--prune", type=whole(16), default=0, metavar="M", help="hidden units of an MLP to keep (all)"
    )
    group.add_argument("--rank", type=whole(1), default=0, metavar="R", help="rank of the item table (full)")
    group.add_argument(
        "--int8", choices=("auto", "on", "off"), default="auto",
        help="matrices and item table in 8 bits; auto: where that costs at most 0.5 %% of NDCG@10, trained "
        "for if need be",
    )  # fmt: skip
    group.add_argument(
        "--state", choices=("auto", "f2", "f4"), default="auto",
        help="LM state of a row in halves (auto: where int8 is kept) or floats",
    )  # fmt: skip
    group.add_argument(
        "--tune-epochs", type=whole(0), default=2, help="of fine-tuning after a step (%(default)s)"
    )


def run(args) -> int:
    from rich.console import Console

    from streamai.errors import SettingsError

    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise SettingsError("training needs torch: pip install 'streamai[train]'") from e
    args.d = args.d or (128 if args.teacher else 64)
    args.layers = args.layers or (5 if args.teacher else 2)
    args.rate = args.rate or (1e-3 if args.teacher else 2e-3)
    if args.d < 16 or args.d % 16:
        raise SettingsError(f"--d {args.d}: the LM's width is a multiple of 16, such as 32, 64 or 128")
    report = train_file(args, Console(stderr=True))
    if args.json:
        print(json.dumps(report))
    else:
        show(report, Console())
    return 0


def train_file(args, console) -> dict:
    """Train the flow of `args` on its file; figures of the run."""
    from streamai.cli.inputs import flow_of, mapping_of
    from streamai.errors import SettingsError
    from streamai.events import MARKET
    from streamai.replay.mapping import TIMES
    from streamai.replay.read import read_events
    from streamai.train import recommend, trade
    from streamai.train.compress import Compression
    from streamai.train.fit import Recipe
    from streamai.train.teach import teach

    mapping = mapping_of(args)
    flow = flow_of(args, mapping)
    out = args.out or f"{flow.name}.{'teacher' if args.teacher else 'weights'}"
    if not pathlib.Path(out).parent.is_dir():  # said before the training, not after it
        raise SettingsError(f"--out {out}: there is no folder {pathlib.Path(out).parent}")
    market = flow.schema.name == MARKET.name
    table = read_events(args.events, flow.schema, mapping, sort=args.sort)
    # a position is an order, not a time
    timed = "position" not in mapping.fields or any(t in mapping.fields for t in TIMES)
    recipe = Recipe(
        epochs=args.epochs or (4 if market else 30), rate=args.rate, seed=args.seed, threads=args.threads,
        precision=args.precision, patience=args.patience,
        window=256 if market else 200, cover=market,
    )  # fmt: skip
    dropout = args.dropout if args.dropout is not None else (0.1 if market else 0.2)
    options = recommend.Options(
        d=args.d, layers=args.layers, dropout=dropout, protocol=args.protocol, until=args.until,
        time=timed and not args.no_time, hide_seen=args.hide_seen, head=not args.no_head,
        text=args.text == "auto", text_bound=args.text_bound, lm=args.lm, recipe=recipe, distil=args.distil,
        alpha=args.alpha, checkpoint=args.checkpoint, answers=args.answers,
        of=tuple(args.of), nproc=args.nproc, parallel=args.parallel,
        compression=Compression(args.prune, args.rank, args.int8, args.state, args.tune_epochs),
        refit=not args.no_refit, fresh=args.fresh,
    )  # fmt: skip
    if args.teacher or args.of:
        if market:
            raise SettingsError("--teacher: there are teachers of click flows only")
        return teach(flow, table, out, options, console)
    return (trade if market else recommend).train(flow, table, out, options, console)


def show(report: dict, console) -> None:
    """The figures as a table."""
    from rich.table import Table

    table = Table("part", "figure", "value")
    for part, figures in report.items():
        if isinstance(figures, dict):
            _rows(table, part, figures)
    console.print(table)
    if report.get("compression"):
        console.print(_steps(report["compression"]))
    console.print(f"{report['path']}: model {report['model']}")


def _steps(rows: list[dict]):
    """The table of compression."""
    from rich.table import Table

    names = ("step", "NDCG@10", "HR@10", "model KB", "bytes a key", "us an event", "tuned, s", "kept")
    table = Table(*names, title="compression; quality on the events that choose")
    for r in rows:
        table.add_row(
            r["step"], f"{r['ndcg@10']:.4f}", f"{r['hr@10']:.4f}", f"{r['model_bytes'] / 1024:,.0f}",
            f"{r['key_bytes']:,}", f"{r['us_per_event']:.2f}", f"{r['seconds']:.0f}",
            "yes" if r["kept"] else "no",
        )  # fmt: skip
    return table


def _rows(table, part: str, figures: dict) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            _rows(table, f"{part} {name}", value)
        else:
            table.add_row(part, name, f"{value:,.4f}" if isinstance(value, float) else f"{value}")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of time above 0 and at most 1")
    return value

"""`streamai fi2010 --train FILE --test FILE...`: the FI-2010 benchmark on files of the user's."""

from __future__ import annotations

import json

NAMES = ("macro_f1", "accuracy", "mcc")


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "fi2010",
        help="run the FI-2010 benchmark on its files",
        description="Setup 2: --train Train_..._CF_7.txt --test Test_..._CF_7.txt Test_..._CF_8.txt "
        "Test_..._CF_9.txt. Setup 1: once a fold, with its own two files. Majority, persistence of the "
        "label, logistic regression, LightGBM, BiN-CTABL and the served recurrence, on equal inputs.",
    )
    p.add_argument("--train", nargs="+", required=True, metavar="FILE")
    p.add_argument("--test", nargs="+", required=True, metavar="FILE")
    p.add_argument("--inputs", type=int, choices=(40, 144), default=40, help="rows that models see (40)")
    p.add_argument("--models", nargs="+", help="which of them (all)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="one JSON object as the last line")


def run(args) -> int:
    from rich.console import Console
    from rich.table import Table

    from streamai.evaluate.study import measures
    from streamai.train import fi2010

    train, test = fi2010.load(args.train), fi2010.load(args.test)
    said = fi2010.run(train, test, args.inputs, tuple(args.models or fi2010.MODELS), args.seed)
    rows = [
        {"horizon": ahead, "model": model, "inputs": args.inputs} | measures(chance, truth)
        for ahead, model, chance, truth in said
    ]
    if args.json:
        print(json.dumps({"rows": rows}))
        return 0
    table = Table("events", "model", *NAMES, "ECE", title=f"{len(test):,} snapshots, {args.inputs} inputs")
    for r in rows:
        cells = [f"{r[n]:.3f} [{r[n + '_low']:.3f}, {r[n + '_high']:.3f}]" for n in NAMES]
        table.add_row(str(r["horizon"]), r["model"], *cells, f"{r['ece']:.3f}")
    Console(width=140).print(table)
    return 0

"""`streamai items CATALOGUE --out FILE`: the catalogue with a vector of each item's words."""

from __future__ import annotations

import json

HELP = "add text vectors to a catalogue"


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "items",
        help=HELP,
        description="Runs each item's words through a small sentence model on this machine and writes the "
        "catalogue with a column `vector`. A model trained with such a catalogue can score an item that "
        "nobody has met. Needs the extra `text`.",
    )
    p.add_argument("catalogue", help=".csv or .parquet with a column id and words, such as title")
    p.add_argument("--out", required=True, metavar="FILE", help="parquet file to write")
    p.add_argument(
        "--columns", default="title,category,text",
        help="whose words, joined in this order; what the file does not have is left out (%(default)s)",
    )  # fmt: skip
    p.add_argument("--threads", type=int, default=1, help="of torch (1)")
    p.add_argument("--json", action="store_true", help="last line is one JSON object")


def run(args) -> int:
    from streamai.train.text import describe

    facts = describe(args.catalogue, args.out, args.columns.split(","), args.threads)
    if args.json:
        print(json.dumps(facts))
    else:
        print(f"{facts['items']:,} items, {facts['encoded']:,} different texts -> {args.out}")
    return 0

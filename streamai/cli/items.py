"""`streamai items CATALOGUE --out FILE`: the catalogue with a vector of each item's words."""

from __future__ import annotations

import json
import pathlib

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
    import polars as pl

    from streamai.catalogue import Catalogue
    from streamai.errors import CatalogueError
    from streamai.train.text import TextEncoder

    path = pathlib.Path(args.catalogue)
    Catalogue.load(path)  # says what is wrong with it
    table = pl.read_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.read_parquet(path)
    columns = [c for c in args.columns.split(",") if c in table.columns]
    if not columns:
        raise CatalogueError(f"{path}: none of the columns {args.columns}; it has {table.columns}")
    words = table.select(pl.concat_str(pl.col(columns).cast(pl.String).fill_null(""), separator=" "))
    texts = [" ".join(t.split()) for t in words.to_series().to_list()]
    encoder = TextEncoder(threads=args.threads)
    vectors = encoder.encode(texts)
    draft = pathlib.Path(args.out + ".part")
    column = pl.Series("vector", vectors, pl.Array(pl.Float32, vectors.shape[1]))
    table.with_columns(column).write_parquet(draft)
    draft.replace(args.out)
    if args.json:
        facts = {"items": len(texts), "without_words": texts.count(""), "encoded": encoder.misses}
        print(json.dumps(facts | {"out": args.out}))
    else:
        print(f"{len(texts):,} items, {encoder.misses:,} different texts -> {args.out}")
    return 0

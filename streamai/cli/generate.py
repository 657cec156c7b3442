"""`streamai generate`: made click and market events and their catalogue, from a seed."""

from __future__ import annotations

import importlib
import json
import os
import sys

from streamai.errors import DeclarationError

GENERATOR = "replay_data.generate"


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "generate",
        help="make events, as many as asked",
        description="Write items.csv, clicks.parquet and market.parquet. The same seed and counts make the "
        "same events. What is planted in them: replay_data/README.md.",
    )
    p.add_argument("--clicks", type=_count, default=4000, help="number of click events (4000)")
    p.add_argument("--market", type=_count, default=4000, help="number of market events (4000)")
    p.add_argument("--seed", type=_count, default=None, help="default: the seed of the files in replay_data/")
    p.add_argument("--out", default="made", help="folder to write into (./made)")
    p.add_argument("--json", action="store_true", help="print one JSON object: name -> path")


def run(args) -> int:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        generator = importlib.import_module(GENERATOR)
    except ModuleNotFoundError as error:
        raise DeclarationError(
            f"no {GENERATOR} in {here}; run from the project's root, the folder that holds replay_data/"
        ) from error
    seed = generator.SEED if args.seed is None else args.seed
    paths = generator.generate(args.clicks, args.market, seed, args.out)
    if args.json:
        print(json.dumps({name: str(path) for name, path in paths.items()}))
    else:
        for name, path in paths.items():
            print(f"{name:7} {path}")
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value

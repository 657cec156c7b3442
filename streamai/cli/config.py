"""`streamai config`: every setting, its value, and where it came from."""

from __future__ import annotations

import json

from streamai import settings


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "config",
        help="print the settings and where each came from",
        description="Settings come from the environment (STREAMAI_*), then streamai.toml, then the default.",
    )
    p.add_argument("--json", action="store_true", help="one JSON object: name -> value, origin")


def run(args) -> int:
    rows = settings.load().rows()
    if args.json:
        print(json.dumps({name: {"value": value, "origin": origin} for name, value, origin, _ in rows}))
        return 0
    name_width = max(len(r[0]) for r in rows)
    value_width = max(len(str(r[1])) for r in rows)
    origin_width = max(len(r[2]) for r in rows)
    for name, value, origin, about in rows:
        print(f"{name:{name_width}}  {str(value):{value_width}}  {origin:{origin_width}}  {about}")
    return 0

"""`streamai parity`: is what was served what replay gives?"""

from __future__ import annotations

import json


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "parity",
        help="compare what was served with what replay gives",
        description="Exit code 0 only if every value is identical, byte for byte.",
    )
    p.add_argument("live", help="output topic written by `streamai record`")
    p.add_argument("replay", help="file written by `streamai replay --out`")
    p.add_argument("--topic", default="", help="output to compare (default: the one that was recorded)")
    p.add_argument("--json", action="store_true", help="last line is one JSON object")


def run(args) -> int:
    from streamai.replay.parity import compare

    result = compare(args.live, args.replay, args.topic)
    if args.json:
        print(json.dumps(result.as_dict()))
    else:
        print(_text(result))
    return 0 if result.identical else 1


def _text(r) -> str:
    counts = f"{r.compared:,} outputs compared, {r.duplicates:,} doubles dropped"
    if r.identical:
        return f"identical: {counts}"
    if not r.first:
        return "nothing to compare: both files are empty"
    lines = [
        f"NOT identical: {counts}; {r.different:,} differ, {r.only_live:,} only live, "
        f"{r.only_replay:,} only in replay",
        f"first difference at {r.first.id}, byte {r.first.byte}"
        + (f", field {r.first.field!r}" if r.first.field else ""),
        f"  live    {r.first.live if r.first.live is not None else '(none)'}",
        f"  replay  {r.first.replay if r.first.replay is not None else '(none)'}",
    ]
    return "\n".join(lines)

"""`streamai index FLOW`: the lists of a large catalogue's items, kept beside the model."""

from __future__ import annotations

import json
import time


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "index",
        help="index the items of a large catalogue",
        description="Groups the model's items into lists of alike ones and measures how many of them a query "
        "scans. Written to MODEL.index; a worker with a catalogue of more items than scan_max takes "
        "it where it is of the same model and catalogue, and makes its own at every start where not.",
    )
    p.add_argument("flow", help="module of the flow, such as agents.recommend")
    p.add_argument("--model", help="weights file in place of the flow's")
    p.add_argument("--items", help="catalogue in place of the flow's")
    p.add_argument("--json", action="store_true", help="last line is one JSON object")


def run(args) -> int:
    from streamai.errors import DeclarationError
    from streamai.flow import load
    from streamai.model import index, tables

    flow = load(args.flow)
    changes = {"model": args.model, "catalogue": args.items}
    flow = flow.but(**{name: v for name, v in changes.items() if v})
    if flow.model is None or flow.catalogue is None:
        raise DeclarationError(f"flow {flow.name!r} has no model or no catalogue: nothing to index")
    began = time.monotonic()
    arrays, weights = tables.items_of(flow)
    kept = index.build(arrays)
    path = index.file_of(weights.path)
    index.write(path, kept, index.digest(arrays["item"], arrays["bias"], arrays["known"]))
    facts = {
        "file": str(path), "items": int(arrays["known"].sum()), "lists": len(kept["middle"]),
        "probed": kept["probed"], "recall@100": round(kept["recall"], 4),
        "scanned": round(kept["scanned"], 4), "seconds": round(time.monotonic() - began, 1),
        "used": len(arrays["item"]) > flow.scan_max,
    }  # fmt: skip
    print(json.dumps(facts) if args.json else _text(facts, flow.scan_max))
    return 0


def _text(facts: dict, scan_max: int) -> str:
    """The facts for people."""
    lines = [
        f"{facts['items']:,} items in {facts['lists']:,} lists -> {facts['file']} ({facts['seconds']} s)",
        f"a query scans {facts['probed']:,} lists, {facts['scanned']:.1%} of the rows, and finds "
        f"{facts['recall@100']:.1%} of its exact 100 best",
    ]
    if not facts["used"]:
        lines.append(f"not used: a catalogue of up to scan_max={scan_max:,} items is scanned whole")
    return "\n".join(lines)

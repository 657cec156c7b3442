"""`streamai replay`: a flow over history."""

from __future__ import annotations

import json
from collections import deque


def add(subparsers) -> None:
    from streamai.cli.inputs import add_mapping, whole

    p = subparsers.add_parser(
        "replay",
        help="run a flow over history",
        description="Events from a file or a recorded topic go through the flow's engine; what live would "
        "send to its output topics is written to parquet: partition, offset, topic, value, tier.",
    )
    p.add_argument("flow", help="module of the flow, such as agents.recommend")
    p.add_argument(
        "--events", required=True, help="parquet, csv, ndjson, MovieLens .dat, or a recorded topic"
    )
    p.add_argument("--out", help="parquet file to write")
    p.add_argument("--tiers", default="full", choices=("full", "rank", "prior", "silent", "recorded"))
    p.add_argument("--recorded", help="recorded output topic, for --tiers recorded")
    p.add_argument("--versions", help="recorded versions topic: every event by what served it")
    p.add_argument("--served", help="a worker's state folder, with the models and tables that it served with")
    p.add_argument("--batch", type=whole(1), default=256, help="most events of one step (256)")
    p.add_argument("--partitions", type=whole(1), default=1, help="split a file of events by key (1)")
    p.add_argument("--state", help="folder that keeps the state; a second replay goes on from it")
    p.add_argument("--model", help="weights file in place of the flow's; 'none' = without")
    p.add_argument("--items", help="catalogue in place of the flow's; 'events' = the items met in the events")
    p.add_argument("--show", type=whole(0), default=0, metavar="N", help="print the last N results")
    p.add_argument("--json", action="store_true", help="last line is one JSON object")
    add_mapping(p)


def run(args) -> int:
    from streamai.cli.inputs import flow_of, mapping_of
    from streamai.deadline import Tier
    from streamai.errors import DeclarationError
    from streamai.replay.run import replay
    from streamai.replay.versions import read_versions

    if (args.tiers == "recorded") != bool(args.recorded):
        raise DeclarationError("--tiers recorded and --recorded FILE go together")
    if bool(args.versions) != bool(args.served):
        raise DeclarationError("--versions FILE and --served FOLDER go together")
    mapping = mapping_of(args)
    tier = Tier.FULL if args.tiers == "recorded" else Tier[args.tiers.upper()]
    flow = flow_of(args, mapping)
    versions = read_versions(flow, args.versions, args.served) if args.versions else None
    latest = deque(maxlen=args.show)
    main = flow.output if "result" in flow.topics else "features"
    result = replay(
        flow, args.events, args.out, mapping, tier, args.recorded, args.batch, args.partitions, args.sort,
        args.state, lambda name, values: latest.extend(values) if name == main else None, versions,
    )  # fmt: skip
    for value in latest:
        print(_shown(json.loads(value), flow.catalogue))
    if args.json:
        print(json.dumps(result))
        return 0
    print(
        f"{result['events']:,} events in {result['seconds']:.1f} s ({result['events_per_s']:,} events/s): "
        f"{result['scored']:,} scored, {result['late']:,} late, {result['dead']:,} dead, "
        f"{result['silent']:,} silent"
    )
    for cause, n in result["dead_causes"].items():
        print(f"  dead: {n:,} x {cause}")
    if args.out:
        print(", ".join(f"{n:,} {topic}" for topic, n in result["outputs"].items()) + f" -> {args.out}")
    return 0


def _shown(value: dict, catalogue) -> str:
    """One output for people: titles in place of item ids."""
    if "items" not in value:
        return json.dumps(value, ensure_ascii=False)
    from streamai.catalogue import Catalogue

    items = catalogue if isinstance(catalogue, Catalogue) else Catalogue.load(catalogue)
    titles = [items.titles[items.index(i)] or i for i in value["items"]]
    return f"{value['id']}  {value['key']}  [{value['tier']}]  " + " | ".join(titles)

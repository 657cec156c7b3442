"""`streamai produce`: a file of events, or a recorded topic -> a topic."""

from __future__ import annotations

import asyncio
import json
import time


def add(subparsers) -> None:
    from streamai.cli.inputs import add_mapping, amount, whole

    p = subparsers.add_parser(
        "produce",
        help="write a file of events into a topic",
        description="Events go to the partition of their key's hash, the one that replay puts them in. "
        "A recorded topic keeps its partitions and bytes.",
    )
    p.add_argument("file", help="parquet, csv, ndjson, MovieLens .dat, or a recorded topic")
    p.add_argument("topic")
    p.add_argument("--schema", default="", help="clicks or market (default: the topic's name)")
    p.add_argument("--bootstrap", default="", help="host:port of Kafka (default: the settings)")
    p.add_argument("--partitions", type=whole(1), default=4, help="of the topic (4); made if it is not there")
    p.add_argument(
        "--rate", type=amount, default=0.0, help="events/s, open loop (default: as fast as it goes)"
    )
    p.add_argument("--binary", action="store_true", help="fixed binary records in place of JSON")
    p.add_argument("--acks", default="all", choices=("all", "1", "0"))
    p.add_argument("--json", action="store_true", help="last line is one JSON object")
    add_mapping(p)


def run(args) -> int:
    began = time.monotonic()
    sent = asyncio.run(_produce(args))
    seconds = time.monotonic() - began
    print(json.dumps({"topic": args.topic, "events": sent, "seconds": round(seconds, 3)}) if args.json
          else f"{sent:,} events -> {args.topic} in {seconds:.1f} s")  # fmt: skip
    return 0


async def _produce(args) -> int:
    from streamai import settings
    from streamai.live.connection import connection
    from streamai.live.topic import make_topic, produce
    from streamai.replay.progress import Progress
    from streamai.replay.read import count_rows

    batches = _batches(args)
    kafka = settings.load().kafka
    options = connection(kafka, args.bootstrap)
    await make_topic(options, args.topic, args.partitions, kafka.replication)
    with Progress(f"produce {args.topic}", count_rows(args.file)) as bar:
        return await produce(options, args.topic, batches, args.rate, args.acks, bar.advance)


def _batches(args):
    """(values, keys, partitions) of the file."""
    from streamai.cli.inputs import mapping_of
    from streamai.errors import DeclarationError
    from streamai.events import SCHEMAS
    from streamai.replay.produce import read_rows
    from streamai.replay.read import is_recorded
    from streamai.replay.record import partitions_of, read_keyed

    if is_recorded(args.file):
        if (needs := partitions_of(args.file)) > args.partitions:
            raise DeclarationError(
                f"{args.file} was recorded from {needs} partitions or more, and records keep theirs: give "
                f"--partitions {needs}, or as many as that topic has"
            )
        return read_keyed(args.file)
    name = args.schema or args.topic
    if name not in SCHEMAS:
        raise DeclarationError(
            f"topic {name!r} does not say its schema; give --schema {' or '.join(SCHEMAS)}"
        )
    rows = read_rows(
        args.file, SCHEMAS[name], mapping_of(args), args.partitions, args.sort, binary=args.binary
    )
    return ((r.values, r.keys, r.partition.tolist()) for r in rows)

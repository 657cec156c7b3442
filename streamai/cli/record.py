"""`streamai record`: a topic -> parquet, in arrival order."""

from __future__ import annotations

import asyncio
import json


def add(subparsers) -> None:
    from streamai.cli.inputs import amount, whole

    p = subparsers.add_parser(
        "record",
        help="write a topic to parquet, in arrival order",
        description="Columns: partition, offset, key, value, headers, kafka_ts_ms. Stops at the end that the "
        "topic has when it starts, or after --seconds or --events.",
    )
    p.add_argument("topic")
    p.add_argument("out", nargs="?", help="parquet file to write (TOPIC.rec.parquet)")
    p.add_argument("--bootstrap", default="", help="host:port of Kafka (default: the settings)")
    p.add_argument("--seconds", type=amount, default=0.0, help="record for so long")
    p.add_argument("--events", type=whole(0), default=0, help="record so many events")
    p.add_argument("--from-end", action="store_true", help="only what comes from now on")
    p.add_argument("--json", action="store_true", help="last line is one JSON object")


def run(args) -> int:
    args.out = args.out or f"{args.topic}.rec.parquet"
    rows = asyncio.run(_record(args))
    print(json.dumps({"topic": args.topic, "out": args.out, "events": rows}) if args.json
          else f"{rows:,} events of {args.topic} -> {args.out}")  # fmt: skip
    return 0


async def _record(args) -> int:
    from streamai import settings
    from streamai.live.connection import connection
    from streamai.live.topic import record
    from streamai.replay.progress import Progress
    from streamai.replay.record import RECORD, TableWriter

    options = connection(settings.load().kafka, args.bootstrap)
    total = args.events or None
    with TableWriter(args.out, RECORD, args.topic) as file, Progress(f"record {args.topic}", total) as bar:
        async for records in record(
            options, args.topic, args.seconds, args.events, args.from_end, bar.expect
        ):
            file.write(
                partition=[r.partition for r in records],
                offset=[r.offset for r in records],
                key=[r.key for r in records],
                value=[r.value for r in records],
                headers=[[{"key": k, "value": v} for k, v in r.headers] for r in records],
                kafka_ts_ms=[r.timestamp for r in records],
            )
            bar.advance(len(records))
    return file.rows

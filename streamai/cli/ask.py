"""`streamai ask`: one request into a flow's topic, and the answer that a running worker gives."""

from __future__ import annotations

import asyncio
import json
import time

PARTITIONERS = ("streamai", "kafka")


def add(subparsers) -> None:
    from streamai.cli.inputs import amount, whole

    p = subparsers.add_parser(
        "ask",
        help="ask a running worker about a key",
        description="Sends a request, which changes no state, to the partition that has the key, and prints "
        "the answer from the flow's output topic. docs/data.md has the record for producers of your own.",
    )
    p.add_argument("key", metavar="USER", help="the user (or instrument)")
    p.add_argument("--flow", default="agents.recommend", help="module of the flow (agents.recommend)")
    p.add_argument("--candidates", type=_names, metavar="A,B,..", help="rank only these items")
    p.add_argument("--exclude", type=_names, metavar="A,B,..", help="items not to answer with")
    p.add_argument("--category", type=_names, metavar="A,B,..", help="items of these categories only")
    p.add_argument("--price", type=_interval, metavar="LOW:HIGH", help="both in it; either may be left out")
    p.add_argument("--filters", type=_object, metavar="JSON", help='more conditions: {"brand": ["Canon"]}')
    p.add_argument("-k", type=whole(1), help="how many items (default: the flow's top_k)")
    p.add_argument("--bootstrap", default="", help="host:port of Kafka (default: the settings)")
    p.add_argument(
        "--partitioner", default="streamai", choices=PARTITIONERS,
        help="how producers place keys: as `streamai produce` does, or by Kafka's default (murmur2)",
    )  # fmt: skip
    p.add_argument("--wait", type=amount, default=10.0, help="seconds for the answer (10)")
    p.add_argument("--json", action="store_true", help="the answer as it is, one JSON object")


def run(args) -> int:
    from streamai import settings
    from streamai.errors import StreamaiError
    from streamai.flow import load
    from streamai.live.connection import connection

    flow = load(args.flow)
    options = connection(settings.load().kafka, args.bootstrap)
    began = time.monotonic()
    topic, value, cause = asyncio.run(_ask(flow, options, args))
    if topic == flow.topics["dead"]:
        raise StreamaiError(f"the request was refused: {cause}")
    answer = json.loads(value)
    if args.json:
        print(json.dumps(answer))
        return 0
    print(f"{answer['key']}: tier {answer['tier']}, {1e3 * (time.monotonic() - began):.0f} ms with Kafka")
    for line in _lines(answer):
        print(line)
    return 0


async def _ask(flow, options: dict, args) -> tuple[str, bytes, str]:
    from streamai.live.ask import ask
    from streamai.live.topic import partitions_of

    count = len(await partitions_of(options, flow.source))
    key = args.key.encode()
    topics = [flow.topics.get("result", flow.topics["features"]), flow.topics["dead"]]
    partition = _partition(args.key, count, args.partitioner)
    return await ask(options, flow.source, topics, record(flow.schema, args), key, partition, args.wait)


def _partition(key: str, count: int, partitioner: str) -> int:
    from streamai.catalogue import hash_id
    from streamai.live.topic import kafka_partition

    return kafka_partition(key.encode(), count) if partitioner == "kafka" else hash_id(key)[0] % count


def record(schema, args) -> bytes:
    """The request as it goes to the topic."""
    filters = dict(args.filters or {})
    if args.category:
        filters["category"] = args.category
    if args.price:
        filters["price"] = args.price
    fields = {"candidates": args.candidates, "exclude": args.exclude, "filters": filters or None, "k": args.k}
    made = {schema.key: args.key, "kind": "request"}
    return json.dumps(made | {name: v for name, v in fields.items() if v is not None}).encode()


def _lines(answer: dict) -> list[str]:
    if "items" in answer:
        pairs = zip(answer["items"], answer["scores"], strict=True)
        return [f"{score:12.6f}  {item}" for item, score in pairs] or ["nothing"]
    names = ("signals", "scores", "features")
    return [f"{name}: {json.dumps(answer[name])}" for name in names if name in answer]


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _interval(text: str) -> dict[str, float]:
    low, _, high = text.partition(":")
    return {bound: float(v) for bound, v in (("min", low), ("max", high)) if v}


def _object(text: str) -> dict:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value

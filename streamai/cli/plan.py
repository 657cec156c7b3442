"""`streamai plan FLOW`: what a flow keeps of a key, feature by feature, and what a million keys need."""

from __future__ import annotations

import json

INDEX_BYTES = 48
"""Beside a row in memory: two hashes, a share of the hash table, flags, the place of the key's bytes."""


def add(subparsers) -> None:
    from streamai.cli.inputs import whole

    p = subparsers.add_parser(
        "plan",
        help="show a flow's features, row layout and memory",
        description="Features with their windows, bytes a key and tail step (how far a sliding window may "
        "reach back beyond its length), the layout of a row, and the memory for a million keys.",
    )
    p.add_argument("flow", help="module with `flow = Flow(...)`, such as agents.recommend")
    p.add_argument("--keys", type=whole(1), default=1_000_000, help="number of keys to reckon for (1000000)")
    p.add_argument("--json", action="store_true", help="one JSON object")


def run(args) -> int:
    from streamai.flow import load

    report = describe(load(args.flow), args.keys)
    if args.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


def describe(flow, keys: int) -> dict:
    """The plan as a JSON-able dict; sizes in bytes, tail steps in ns."""
    from streamai.feature import compile_views

    plans = {}
    for views in (flow.key_views, flow.item_views):
        if not views:
            continue
        plan = compile_views(views, flow.schema)
        features = [f for v in views for f in v.features.values()]
        names = {id(f): n for n, f in zip(plan.names, features)}
        rows = zip(plan.names, features, plan.bytes_of().values(), plan.tail_step_ns)
        plans[plan.key] = {
            "digest": plan.digest,
            "bytes": 8 * plan.cells,
            "features": [
                {
                    "name": n,
                    "op": op(f, flow.schema, names),
                    "window": window(f),
                    "bytes": b,
                    "tail_step_ns": int(t),
                }
                for n, f, b, t in rows
            ],
        }
    layout = layout_of(flow)
    row = {
        "header": 8 * layout.plan_at,
        "features": 8 * layout.plan_cells,
        "ring": 8 * (layout.lm_at - layout.ring_at),
        "lm_state": 8 * (layout.cells - layout.lm_at),
    }
    total = sum(row.values())
    return {
        "flow": flow.name,
        "source": flow.source,
        "key": flow.schema.key,
        "plans": plans,
        "row": row,
        "ring_events": layout.ring,
        "bytes_a_key": total,
        "keys": keys,
        "memory_bytes": keys * (total + INDEX_BYTES),
        "item_index": None if flow.model is None or flow.catalogue is None else index_of(flow.model),
    }


def index_of(model) -> dict | None:
    """The index of items beside a model, if `streamai index` has written one."""
    from streamai.model import index

    return index.facts(index.file_of(model))


def layout_of(flow):
    """Layout of the rows of a flow's keys."""
    from streamai.feature import compile_views
    from streamai.model import tables, weights

    model = None if flow.model is None else weights.read(flow.model)
    return tables.layout_of(flow, compile_views(flow.key_views, flow.schema), model)


def _text(column) -> str:
    """A column of the event, or one worked out of several, as it was declared."""
    if column is None or isinstance(column, str):
        return column or ""
    return f"{column.op}({', '.join(_text(c) for c in column.inputs)})"


def op(feature, schema, names: dict[int, str]) -> str:
    """What is computed: `mean(dwell_ms)`, `ratio(clicks_7d, views_7d)`. names: of features by id()."""
    if feature.inputs:
        inputs = (names.get(id(f)) or op(f, schema, names) for f in feature.inputs)
        return f"{feature.output}({', '.join(inputs)})"
    plain = {"n": "count", "total": "sum", "second": feature.aggregate}
    columns = ", ".join(t for t in (_text(feature.value), _text(feature.weight)) if t and t != "item_hash()")
    kinds = [name for name, number in schema.kinds.items() if {name, number} & set(feature.kinds)]
    return f"{plain.get(feature.output, feature.output)}({columns}){' of ' * bool(kinds)}{', '.join(kinds)}"


def window(feature) -> str:
    """Its window in words."""
    if feature.inputs:
        return ""
    w = feature.window
    span = duration(w.length_ns)
    return {
        "unbounded": "all events",
        "sawtooth": f"{span} sliding, {w.parts} hops",
        "exact": f"{span} exact, at most {w.parts}" if w.length_ns else f"last {w.parts} events",
        "tumbling": f"{span} tumbling",
        "session": f"session, pause {span}",
        "decayed": f"half-life {span}",
        "ewm": f"half-life {span}, by time",
        "since": "",
    }[w.kind]


def duration(ns: int) -> str:
    """`5m`, `18.75s`; empty for 0."""
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if ns >= seconds * 10**9 and (unit != "d" or ns > 86_400 * 10**9):
            return f"{ns / seconds / 1e9:.4g}{unit}"
    return f"{ns / 1e6:.4g}ms" if ns else ""


def _size(n: float) -> str:
    for unit in ("B", "KB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def show(report: dict) -> None:
    """The report for people."""
    print(f"flow {report['flow']}: reads {report['source']}, keyed by {report['key']}")
    for key, plan in report["plans"].items():
        print(f"\nfeatures of {key}  (plan {plan['digest']}, {plan['bytes']:,} bytes a key)")
        rows = [("feature", "computed", "window", "bytes", "tail step")]
        for f in plan["features"]:
            what = f["op"] if len(f["op"]) < 60 else f["op"][:57] + "..."
            tail = duration(f["tail_step_ns"]) or "exact"
            rows.append((f["name"], what, f["window"], f"{f['bytes']:,}", tail))
        w = [max(len(r[i]) for r in rows) for i in range(5)]
        for name, what, span, size, tail in rows:
            print(f"  {name:{w[0]}}  {what:{w[1]}}  {span:{w[2]}}  {size:>{w[3]}}  {tail:>{w[4]}}")
    print(f"\nrow of {report['key']}")
    for part, size in report["row"].items():
        note = f"  last {report['ring_events']} events" if part == "ring" else ""
        print(f"  {part:10} {size:>8,} bytes{note}")
    print(f"  {'total':10} {report['bytes_a_key']:>8,} bytes a key, {INDEX_BYTES} more in memory to find it")
    print(f"\n{report['keys']:,} keys in memory: {_size(report['memory_bytes'])}")
    print("Keys beyond state.rows_max stay on disk and are read when they come again.")
    if report["item_index"]:
        i = report["item_index"]
        lists = f"{i['probed']:,} of {i['lists']:,} lists, {i['scanned']:.1%} of the rows"
        print(f"Index of items: a query scans {lists}; recall@100 {i['recall@100']:.3f}")
    print("Bytes that features share are counted at the first of them.")

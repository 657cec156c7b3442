"""`streamai state get KEY`: what is stored of a key. `streamai state info`: of each partition."""

from __future__ import annotations

import datetime
import json
import math
import pathlib


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "state",
        help="look into the stored state of a key",
        description="Reads the checkpoints on disk, also of a running worker: the last one is shown.",
    )
    actions = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="features, last events and times of a key")
    get.add_argument("key", help="the key as it is on the wire, such as a user_id or an instrument")
    get.add_argument("--last", type=int, default=10, help="events of the ring to show (10)")
    info = actions.add_parser("info", help="fence, keys and size of every partition")
    for q in (get, info):
        q.add_argument("--flow", help="module of the flow; default: every one in agents/ that has state")
        q.add_argument("--folder", help="state folder; default: that of the settings, then the flow's name")
        q.add_argument("--json", action="store_true", help="one JSON object")


def run(args) -> int:
    from streamai.flow import load

    found, partitions = [], 0
    for flow in [load(args.flow)] if args.flow else flows_here(args.folder):
        stores = open_stores(flow, args.folder)
        partitions += len(stores)
        try:
            found += info(flow, stores) if args.action == "info" else get(flow, stores, args.key, args.last)
        finally:
            for store in stores.values():
                store.close()
    if args.action == "info":
        print(json.dumps({"partitions": found})) if args.json else show_info(found)
        return 0
    if not found:
        print(f"no state of {args.key!r} in {partitions} partition(s): never seen, or not yet checkpointed")
        return 1
    for report in found:
        print(json.dumps(report)) if args.json else show(report)
    return 0


def flows_here(folder: str | None) -> list:
    """The flows of the modules in agents/ that have state, in `folder` or in their own."""
    from streamai.errors import DeclarationError, StateError
    from streamai.flow import load

    found = []
    for path in sorted(pathlib.Path("agents").glob("[!_]*.py")):
        try:
            flow = load(f"agents.{path.stem}")
            stores = open_stores(flow, folder)
        except (DeclarationError, StateError):  # no flow, or none of its state here
            continue
        if all((store.meta() or {}).get("flow") == flow.name for store in stores.values()):
            found.append(flow)
        for store in stores.values():
            store.close()
    if not found:
        raise DeclarationError(
            f"no flow in agents/ has state in {folder or 'the settings state.folder'}; name one with --flow, "
            "and where its state is with --folder"
        )
    return found


def open_stores(flow, folder: str | None) -> dict[str, object]:
    """Every store under the flow's folder, read only, by the name of its own folder (the partition)."""
    from streamai import settings
    from streamai.errors import StateError
    from streamai.state.store import Store

    root = pathlib.Path(folder) if folder else pathlib.Path(settings.load().state.folder) / flow.name
    found = sorted(p.parent for p in root.glob("**/CURRENT"))
    if not found:
        raise StateError(
            f"no state of {flow.name} in {root}: expected a folder for each partition that a worker has had. "
            "Name another one with --folder."
        )
    return {str(p.relative_to(root)): Store(p, read_only=True) for p in found}


def info(flow, stores: dict) -> list[dict]:
    """Fence, keys and size of each partition."""
    return [
        {
            "flow": flow.name,
            "partition": name,
            "fence": (meta := store.meta() or {}).get("fence"),
            "keys": sum(1 for _ in store.scan(b"k")),
            "bytes": store.size_bytes(),
            "meta": meta,
        }
        for name, store in stores.items()
    ]


def show_info(rows: list[dict]) -> None:
    """Partitions for people."""
    for r in rows:
        place = f"{r['flow']}, partition {r['partition']}"
        print(f"{place}: fence {r['fence']}, {r['keys']:,} keys, {r['bytes']:,} bytes on disk")


def get(flow, stores: dict, key: str, last: int) -> list[dict]:
    """What is stored of a key, for the one partition that has it; empty where none has."""
    import numpy as np

    from streamai.catalogue import hash_id

    name = np.array(hash_id(key), "u8").tobytes()  # keys and item ids share one hash
    for partition, store in stores.items():
        value = store.load([name])[0]
        if value is not None:
            row = np.frombuffer(value, "u1", offset=2 + int.from_bytes(value[:2], "little"))
            report = describe(flow, row.copy(), store.vocabulary(), last)
            fence = (store.meta() or {}).get("fence")
            return [{"key": key, "flow": flow.name, "partition": partition, "fence": fence, **report}]
    return []


def describe(flow, row, ids: list[str] | None, last: int) -> dict:
    """What a row u1[R] says, JSON-able. ids: the store's item ids in index order."""
    import numpy as np

    from streamai.cli.plan import layout_of
    from streamai.errors import StateError
    from streamai.layout import MODEL_CELL

    layout = layout_of(flow)
    if row.size < 8 * layout.lm_at:
        raise StateError(
            f"the stored row has {row.size} bytes, {flow.name} now has rows of at least {8 * layout.lm_at}: "
            "the views changed since the checkpoint."
        )
    cells = row.view("i8")
    lm = row[8 * layout.lm_at :].view("f4").astype("f8")  # of the model that made it, not of the flow's
    model = f"{row.view('u8')[MODEL_CELL]:016x}" if len(lm) else None
    return {
        "events": int(cells[1]),
        "last_event_ts_ns": int(cells[0]),
        "features": features(flow, cells, layout),
        "overflow": overflow(flow, cells, layout),
        "ring": ring(flow, row, layout, ids, last),
        "lm": {"model": model, "norm": float(np.sqrt(np.sum(lm**2)))},
    }


def features(flow, cells, layout) -> dict[str, float | None]:
    """The features of a row (cells i8) as of its last event; None = not seen."""
    import numpy as np

    from streamai.feature import compile_views
    from streamai.kernels import windows

    plan = compile_views(flow.key_views, flow.schema)
    still = plan.acc.copy()  # nothing is taken in and no window moves: what is read is what the event left
    still[:, windows.KINDS], still[:, windows.WINDOW] = 0, windows.UNBOUNDED
    state = cells[layout.plan_at : layout.plan_at + plan.cells].copy()
    out, columns = np.empty(len(plan.names), "f4"), np.full(len(flow.schema.columns), np.nan)
    at = int(cells[0])
    windows.update(
        plan.derived, plan.derived_p, still, plan.acc_p, plan.out, plan.out_p, state.view("f8"), state,
        at, at, 1, np.uint64(0), columns, np.empty(plan.scratch), out,
    )  # fmt: skip
    return {n: None if math.isnan(v) else round(float(v), 6) for n, v in zip(plan.names, out)}


def overflow(flow, cells, layout) -> dict[str, int]:
    """By exact feature: events that its window had to drop for want of room; only those that dropped some."""
    from streamai.feature import compile_views

    plan = compile_views(flow.key_views, flow.schema)
    dropped = plan.overflow(cells[layout.plan_at : layout.plan_at + plan.cells])
    return {name: n for name, n in dropped.items() if n}


def ring(flow, row, layout, ids: list[str] | None, last: int) -> list[dict]:
    """The newest events of a row's ring, newest first: kind, and the item with its title or the token."""
    catalogue = _catalogue(flow)
    kinds = {number: name for name, number in flow.schema.kinds.items()}
    seen, entry = int(row.view("i8")[1]), layout.entry_bytes
    out = []
    for k in range(min(seen, layout.ring, last)):
        at = 8 * layout.ring_at + ((seen - 1 - k) % layout.ring) * entry
        token = int(row[at : at + 4].view("i4")[0])
        event = {"kind": kinds.get(int(row[at + 4]), int(row[at + 4]))}
        if catalogue is None:
            event["token"] = token
        elif token < 0:
            event["item"] = None  # was in no catalogue when it came
        else:
            event["item"] = (ids or catalogue.ids)[token]
            index = catalogue.index(event["item"])
            event["title"] = catalogue.titles[index] if index >= 0 else ""
        out.append(event)
    return out


def _catalogue(flow):
    from streamai.catalogue import Catalogue

    if flow.catalogue is None or isinstance(flow.catalogue, Catalogue):
        return flow.catalogue
    return Catalogue.load(flow.catalogue)


def show(report: dict) -> None:
    """A key's state for people."""
    when = datetime.datetime.fromtimestamp(report["last_event_ts_ns"] / 1e9, datetime.UTC)
    place = f"flow {report['flow']}, partition {report['partition']}"
    print(f"{report['key']}: {place}, checkpoint at offset {report['fence']}")
    print(f"  {report['events']:,} events, the last at {when:%Y-%m-%d %H:%M:%S.%f} UTC")
    print("features as of its last event")
    for name, value in report["features"].items():
        print(f"  {name:24} {'-' if value is None else f'{value:,.6g}'}")
    for name, n in report["overflow"].items():
        print(f"  {name}: {n:,} events did not fit its exact window; raise max=")
    print("last events, newest first")
    for event in report["ring"]:
        what = event.get("title") or event.get("item") or event.get("token", "(not in the catalogue)")
        print(f"  {event['kind']:10} {what}")
    if report["lm"]["model"]:
        print(f"LM state: norm {report['lm']['norm']:.3f}, of model {report['lm']['model']}")

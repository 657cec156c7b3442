"""Runs a Task: baselines, the LM alone and the whole flow, judged at the same moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamai.deadline import Tier
from streamai.engine import Engine
from streamai.errors import InputError, ModelError
from streamai.evaluate import metrics as m
from streamai.evaluate.baselines import Baseline, History, all_baselines
from streamai.evaluate.protocols import Task
from streamai.flow import Flow
from streamai.replay.produce import rows_of
from streamai.scored import LATE
from streamai.wire.json import Decoder

LIST = 20
"""Length of the lists that are judged."""
COLD_EVENTS = 5
"""An item with so many events or fewer is cold: hardly anything is known of it but its text."""
SHOWN = 10
"""Of those, how many count for coverage and exposure."""
_CHUNK = 8192
_ALWAYS = "36500d"


class Tally:
    """Ranks and exposures of one model: `all` ranks every item; `new` leaves out what the key had before, and
    judges only by targets that are new to the key; `cold` ranks cold targets among the cold items alone."""

    MODES = ("all", "new")
    RANKS = (*MODES, "cold")

    def __init__(self, task: Task, items: int) -> None:
        self.at = task.target_at
        self.group = np.repeat(np.arange(len(self.at) - 1), np.diff(self.at))  # list of each target
        self.rank = {mode: np.full(len(task.target), m.MISS, np.int64) for mode in self.RANKS}
        self.shown = {mode: np.zeros(items, np.int64) for mode in self.RANKS}

    def dense(
        self, s: int, scores: np.ndarray, target: np.ndarray, repeat: np.ndarray, seen: np.ndarray,
        cold: np.ndarray,
    ) -> None:  # fmt: skip
        """List s as scores of all items; its targets i8[k], which of them repeat, the items the key had, and
        which items are cold, bool[N]."""
        at = self.at[s]
        if (cold[target] & (target >= 0)).any():
            among = np.where(cold[: len(scores)], scores, 0)
            for j in np.flatnonzero(cold[target] & (target >= 0)):
                self.rank["cold"][at + j] = m.rank_dense(among, target[j])
            self.shown["cold"][m.top(among, SHOWN)] += 1
        for j in range(len(target)):
            self.rank["all"][at + j] = m.rank_dense(scores, target[j])
            if not repeat[j]:
                self.rank["new"][at + j] = m.rank_dense(scores, target[j], seen)
        self.shown["all"][m.top(scores, SHOWN)] += 1
        self.shown["new"][m.top(scores, SHOWN, seen)] += 1

    def listed(
        self, mode: str, s: int, items: np.ndarray, target: np.ndarray, repeat: np.ndarray, cold: np.ndarray
    ) -> None:
        """List s as items i4[...], best first, -1 = no more. Cold targets are ranked among its cold items."""
        for j in range(len(target)):
            if mode == "all" or not repeat[j]:
                self.rank[mode][self.at[s] + j] = m.rank_listed(items, target[j])
            if mode == "all" and target[j] >= 0 and cold[target[j]]:
                among = items[(items >= 0) & cold[items]]
                self.rank["cold"][self.at[s] + j] = m.rank_listed(among, target[j])
        shown = items[:SHOWN]
        self.shown[mode][shown[shown >= 0]] += 1

    def report(self, repeat: np.ndarray, available: np.ndarray, cold: np.ndarray) -> dict:
        """repeat bool[T]: targets that the key had before, which `new` does not count; cold bool[T]: targets
        that hardly anyone had; available bool[N]."""
        return {
            mode: _figures(self.rank[ranks][use], self.group[use], self.shown[ranks][available])
            for mode, (ranks, use) in _used(repeat, cold).items()
        }


def _used(repeat: np.ndarray, cold: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """What is reported -> whose ranks, and which targets it counts, bool[T]."""
    return {
        "all": ("all", np.ones(len(repeat), bool)),
        "new": ("new", ~repeat),
        "cold": ("all", cold),
        "cold_among": ("cold", cold),
    }


def paired(tally: Tally, others: dict[str, Tally], repeat: np.ndarray, cold: np.ndarray) -> dict:
    """NDCG@10 of `tally` less that of each other, target by target, and the error of that mean.

    Two models that meet the same targets err together, so this is far sharper than two errors side by side.
    """
    out = {}
    for mode, (ranks, use) in _used(repeat, cold).items():
        own, out[mode] = m.ndcg(tally.rank[ranks][use], 10), {}
        for name, other in others.items():
            less = own - m.ndcg(other.rank[ranks][use], 10)
            mean, error = m.mean_and_error(less, tally.group[use])
            out[mode][name] = {"ndcg@10": mean, "ndcg@10_se": error}
    return out


def _figures(ranks: np.ndarray, group: np.ndarray, shown: np.ndarray) -> dict:
    out = {"targets": len(ranks)}
    for name, values in (
        ("hr@10", m.hits(ranks, 10)), ("hr@20", m.hits(ranks, 20)), ("ndcg@10", m.ndcg(ranks, 10)),
        ("mrr@20", m.mrr(ranks, 20)),
    ):  # fmt: skip
        out[name], out[f"{name}_se"] = m.mean_and_error(values, group)
    out["coverage@10"] = float(np.count_nonzero(shown) / max(len(shown), 1))
    out["gini@10"] = m.gini(shown)
    return out


def evaluate(
    flow: Flow,
    task: Task,
    advance: Callable[[str, int], None] = lambda name, n: None,
    elsewhere: bool = False,
) -> dict:
    """Every model's figures on the task; see Tally for `all` and `new`.

    advance    called with (pass, events) as events go through
    elsewhere  the caller knows that the flow's model was trained on other events; else ModelError where it
               may have learnt from the targets
    """
    engine = Engine(flow.but(top_k=LIST, decide=None, disorder=_ALWAYS, exclude_seen=False))
    catalogue = engine.catalogue
    if catalogue is None:
        raise InputError(f"flow {flow.name!r} has no catalogue and recommends nothing; give --items")
    if not elsewhere:
        _check_model(engine, task)
    item = np.array([catalogue.index(i) if i else -1 for i in task.table[flow.schema.item]], np.int64)
    target = np.array([catalogue.index(i) for i in task.target], np.int64)
    baselines, available = all_baselines(catalogue, flow.counts), catalogue.available != 0
    repeat, warm = _repeats(task, item, target), Warm(task, item, len(available))
    cold = np.zeros(len(target), bool)
    for s, is_cold in warm:
        cut = slice(task.target_at[s], task.target_at[s + 1])
        cold[cut] = is_cold[target[cut]] & (target[cut] >= 0)
    tallies = run_baselines(
        baselines, task, item, target, repeat, lambda n: advance("baselines", n), available
    )
    served = run_flow(flow, engine, task, item, target, repeat, advance)
    name = list(served)[-1]
    others = tallies | {n: t for n, t in served.items() if n != name}
    return {
        "items": int(available.sum()),
        "targets": len(target),
        "repeats": int(repeat.sum()),
        "cold_targets": int(cold.sum()),
        "targets_not_in_the_catalogue": int((target < 0).sum()),
        "targets_not_available": int((~available[target[target >= 0]]).sum()),
        "models": {n: t.report(repeat, available, cold) for n, t in (tallies | served).items()},
        "paired": {"model": name, **paired(served[name], others, repeat, cold)},
    }


def run_baselines(
    baselines: list[Baseline], task: Task, item: np.ndarray, target: np.ndarray, repeat: np.ndarray,
    advance: Callable[[int], None], available: np.ndarray,
) -> dict[str, Tally]:  # fmt: skip
    """Feed the events one by one; judge after those that the task asks about.

    available bool[N]: no list shows the other items, as the flow's own shows none.
    """
    gone = np.flatnonzero(~available)
    n = max(len(b.scores(0, 0, History())) for b in baselines)
    tallies = {b.name: Tally(task, n) for b in baselines}
    history, s, warm = History(), 0, iter(Warm(task, item, len(available)))
    times, keys, items = task.table["event_ts_ns"].to_list(), task.key.tolist(), item.tolist()
    for row, (key, t, i, frozen) in enumerate(zip(keys, times, items, task.frozen.tolist())):
        if not frozen:
            for b in baselines:
                b.learn(key, i, t, history)
        history.add(key, i)
        if s < len(task.ask) and row == task.ask[s]:
            cut, seen = slice(task.target_at[s], task.target_at[s + 1]), history.seen(key)
            _, cold = next(warm)
            for b in baselines:
                scores = b.scores(key, t, history)
                if len(gone):
                    scores = scores.copy()
                    scores[gone] = 0
                tallies[b.name].dense(s, scores, target[cut], repeat[cut], seen, cold)
            s += 1
        if row % _CHUNK == _CHUNK - 1:
            advance(_CHUNK)
    advance(len(keys) % _CHUNK)
    return tallies


def run_flow(
    flow: Flow, engine: Engine, task: Task, item: np.ndarray, target: np.ndarray, repeat: np.ndarray,
    advance: Callable[[str, int], None],
) -> dict[str, Tally]:  # fmt: skip
    """The flow's own lists, once over all items and once without what the key had; and its LM alone."""
    system, lm = Tally(task, len(engine.catalogue.available)), None
    for mode in Tally.MODES:
        lists, hidden, seen = _serve(engine, task, item, mode == "new", lambda n, mode=mode: advance(mode, n))
        for s, cold in Warm(task, item, len(engine.catalogue.available)):
            cut = slice(task.target_at[s], task.target_at[s + 1])
            system.listed(mode, s, lists[s], target[cut], repeat[cut], cold)
        if mode == "all" and hidden.shape[1]:
            lm = _lm_alone(engine, task, hidden, seen, item, target, repeat)
        if mode == "all":
            engine = Engine(flow.but(top_k=LIST, decide=None, disorder=_ALWAYS, exclude_seen=False))
    name = "counts as served" if lm is None else "LM + counts" + (" + head" if _has_head(engine) else "")
    return ({"LM alone": lm} if lm else {}) | {name: system}


def _serve(
    engine: Engine, task: Task, item: np.ndarray, hide_seen: bool, advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Lists i4[S, LIST], LM outputs f4[S, d] and the key's items of every moment that the task asks about."""
    asked = np.zeros(len(task.table), bool)
    asked[task.ask] = True
    tiers = np.where(asked, Tier.FULL, Tier.SILENT).astype(np.uint8)
    d = engine.arrays["hidden"].shape[1]
    lists, hidden = np.full((len(task.ask), LIST), -1, np.int32), np.zeros((len(task.ask), d), np.float32)
    history, seen, s = History(), [], 0
    exclude = engine.exclude
    decoder = Decoder(engine.flow.schema, engine.catalogue)
    for base in range(0, len(task.table), _CHUNK):
        part = rows_of(task.table[base : base + _CHUNK], engine.flow.schema)
        offsets = np.arange(base, base + len(part))
        events = decoder.decode(part.values, offsets, np.zeros(len(part), np.int64), engine.flow.source, 0)
        if events.dead:
            raise InputError(f"row {events.dead[0].offset}: {events.dead[0].cause}")
        for at, stop in _cuts(
            asked[base : base + len(part)], task.frozen[base : base + len(part)], hide_seen
        ):
            for row in range(base + at, base + stop):
                history.add(int(task.key[row]), int(item[row]))
            own = None
            if hide_seen and asked[base + at]:
                own = history.seen(int(task.key[base + at]))
                exclude[own] = 1
            engine.learn_counts(not task.frozen[base + at])
            while at < stop:
                scored = engine.step(events[at:stop], tiers[base + at : base + stop])
                if (scored.status == LATE).any():
                    raise InputError(
                        f"rows near {base + at} go back in time; evaluate sorts its events: report this"
                    )
                for j in np.flatnonzero(scored.tier == Tier.FULL).tolist():
                    lists[s], hidden[s] = scored.items[j], scored.hidden[j]
                    seen.append(history.seen(int(task.key[base + at + j])))
                    s += 1
                at += len(scored)
                if at < stop and len(scored) < engine.batch_max:
                    engine.checkpoint()
            if own is not None:
                exclude[own] = 0
        advance(len(part))
    return lists, hidden, seen


def _cuts(asked: np.ndarray, frozen: np.ndarray, alone: bool) -> list[tuple[int, int]]:
    """Runs [at, stop) of one value of `frozen` that end after every event asked about; with `alone` such an
    event is a run of its own, as it hides items of its own."""
    n = len(asked)
    edges = {0, n, *(np.flatnonzero(np.diff(frozen)) + 1).tolist()}
    rows = np.flatnonzero(asked)
    edges.update((rows + 1).tolist())
    if alone:
        edges.update(rows.tolist())
    edges = sorted(edges)
    return list(zip(edges[:-1], edges[1:]))


def _lm_alone(
    engine: Engine,
    task: Task,
    hidden: np.ndarray,
    seen: list[np.ndarray],
    item: np.ndarray,
    target: np.ndarray,
    repeat: np.ndarray,
) -> Tally:
    """The LM's logits over every item that it knows."""
    tables = engine.table_arrays
    tally = Tally(task, len(tables["known"]))
    warm = iter(Warm(task, item, len(tables["known"])))
    never = (tables["known"] == 0) | (tables["available"] == 0)
    for base in range(0, len(hidden), 256):
        logits = hidden[base : base + 256] @ tables["item"].T + tables["bias"]
        logits[:, never] = -np.inf
        # ranks do not change; a list shows what scores above 0
        logits -= logits[:, ~never].min(1, keepdims=True) - 1
        for s in range(base, min(base + 256, len(hidden))):
            cut = slice(task.target_at[s], task.target_at[s + 1])
            tally.dense(s, logits[s - base], target[cut], repeat[cut], seen[s], next(warm)[1])
    return tally


def _repeats(task: Task, item: np.ndarray, target: np.ndarray) -> np.ndarray:
    """bool[T]: which targets the key had before its list was served."""
    history, repeat, s = History(), np.zeros(len(target), bool), 0
    asks = task.ask.tolist()
    for row, (key, i) in enumerate(zip(task.key.tolist(), item.tolist())):
        history.add(key, i)
        if s < len(asks) and row == asks[s]:
            had = set(history.items[key])
            for j in range(task.target_at[s], task.target_at[s + 1]):
                repeat[j] = target[j] >= 0 and int(target[j]) in had
            s += 1
    return repeat


class Warm:
    """For every list in turn (its number, which items are cold, bool[N]): those with at most COLD_EVENTS
    events, with any key, when the list was served. The array is the same one, overwritten."""

    def __init__(self, task: Task, item: np.ndarray, items: int) -> None:
        self.task, self.item, self.items = task, item, items

    def __iter__(self):
        met, cold, row = np.zeros(self.items, np.int64), np.ones(self.items, bool), 0
        for s, ask in enumerate(self.task.ask.tolist()):
            fed = self.item[row : ask + 1]
            fed, row = fed[fed >= 0], ask + 1
            np.add.at(met, fed, 1)
            cold[fed] = met[fed] <= COLD_EVENTS
            yield s, cold


def _has_head(engine: Engine) -> bool:
    return len(engine.table_arrays["head_w"]) > 0


def _check_model(engine: Engine, task: Task) -> None:
    """Refuse a model that has learnt from the targets."""
    if engine.model is None:
        return
    trained = engine.model.header.get("metrics", {})
    protocol, until = trained.get("protocol"), trained.get("fitted_until_ns")
    if "cut_ns" not in task.facts:
        if protocol == "leave-one-out":
            return
        wanted = "leave-one-out"
    else:
        # leave-one-out has learnt from times after the cut
        if protocol != "leave-one-out" and until is not None and until <= task.facts["cut_ns"]:
            return
        wanted = "prequential"
    raise ModelError(
        f"{engine.model.path} was trained with --protocol {protocol}, until {until}: it may have learnt from "
        f"what it would be judged by. Train one with `streamai train ... --protocol {wanted}` on the same "
        "events and name it with --model; give --model none; or, if it was trained on other events than "
        "these, --trained-elsewhere"
    )

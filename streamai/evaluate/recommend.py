"""Runs a Task: baselines, the LM alone and the whole flow, judged at the same moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from streamai.deadline import Tier
from streamai.engine import Engine
from streamai.errors import InputError, ModelError
from streamai.evaluate.baselines import Baseline, History
from streamai.evaluate.neighbours import all_baselines
from streamai.evaluate.partitioned import Partitioned
from streamai.evaluate.protocols import Task
from streamai.evaluate.tally import LIST, Tally, Warm, paired
from streamai.flow import Flow
from streamai.replay.produce import rows_of
from streamai.scored import LATE
from streamai.wire.json import Decoder

_CHUNK = 8192
_ALWAYS = "36500d"


@dataclass(frozen=True)
class Beside:
    """A model judged beside the flow: its outputs at the moments that are asked about.

    hidden f4[S, d]; item f4[V, d] and bias f4[V] of a vocabulary of V item ids: score = hidden . item + bias.
    """

    name: str
    hidden: np.ndarray
    item: np.ndarray
    bias: np.ndarray
    vocabulary: list[str]


@dataclass(frozen=True)
class Lists:
    """What a flow served: lists i4[S, LIST], LM outputs f4[S, d] and the key's items at every moment asked
    about; time that each took ns i8[S]; events and the time that all steps took."""

    items: np.ndarray
    hidden: np.ndarray
    seen: list[np.ndarray]
    elapsed_ns: np.ndarray
    events: int
    busy_ns: int

    def speed(self, budget_ns: int) -> dict:
        """Percentiles of a list's time in microseconds, share of late ones, events a second of one core."""
        p = np.percentile(self.elapsed_ns, (50, 99, 99.9)) / 1e3
        return {
            "step_us_p50": float(p[0]), "step_us_p99": float(p[1]), "step_us_p99.9": float(p[2]),
            "late_share": float((self.elapsed_ns > budget_ns).mean()),
            "events_per_s": self.events / max(1, self.busy_ns) * 1e9,
        }  # fmt: skip


def evaluate(
    flow: Flow,
    task: Task,
    advance: Callable[[str, int], None] = lambda name, n: None,
    elsewhere: bool = False,
    beside: Sequence[Beside] = (),
    more: Sequence = (),
    budget_ms: float | None = None,
    split: tuple[int, int] = (1, 0),
) -> dict:
    """Every model's figures on the task; see Tally for `all` and `new`.

    advance    called with (pass, events) as events go through
    elsewhere  the caller knows that the flow's model was trained on other events; else ModelError where it
               may have learnt from the targets
    beside     other models' outputs
    more       further model files of the flow (other seeds): mean and spread over all of them are reported
    budget_ms  a list that took longer is a miss (the flow's budget)
    split      (partitions that the keys are spread over, events between two merges of counts; 0 = none)
    """
    engine = open_for(flow, split)
    catalogue = engine.catalogue
    if catalogue is None:
        raise InputError(f"flow {flow.name!r} has no catalogue and recommends nothing; give --items")
    if not elsewhere:
        _check_model(engine, task)
    item = np.array([catalogue.index(i) if i else -1 for i in task.table[flow.schema.item]], np.int64)
    target = np.array([catalogue.index(i) for i in task.target], np.int64)
    keys = int(task.key.max(initial=-1)) + 1
    baselines, available = all_baselines(catalogue, flow.counts, keys), catalogue.available != 0
    repeat, warm = _repeats(task, item, target), Warm(task, item, len(available))
    cold = np.zeros(len(target), bool)
    for s, is_cold in warm:
        cut = slice(task.target_at[s], task.target_at[s + 1])
        cold[cut] = is_cold[target[cut]] & (target[cut] >= 0)
    asked = _Asked(task, item, target, repeat)
    tallies = run_baselines(
        baselines, task, item, target, repeat, lambda n: advance("baselines", n), available
    )
    budget_ns = int((budget_ms or flow.budget_ms) * 1e6)
    served, lists = run_flow(flow, engine, asked, advance, budget_ns, split)
    for other in beside:
        tallies[other.name] = asked.beside(other, catalogue, lists.seen)
    name = list(served)[-1]
    others = tallies | {n: t for n, t in served.items() if n != name}
    report = {n: t.report(repeat, available, cold) for n, t in (tallies | served).items()}
    out = {
        "items": int(available.sum()),
        "targets": len(target),
        "repeats": int(repeat.sum()),
        "cold_targets": int(cold.sum()),
        "targets_not_in_the_catalogue": int((target < 0).sum()),
        "targets_not_available": int((~available[target[target >= 0]]).sum()),
        "bytes_per_key": engine.layout.row_bytes,
        "budget_ms": budget_ns / 1e6,
        "speed": lists.speed(budget_ns),
        "models": report,
        "paired": {"model": name, **paired(served[name], others, repeat, cold)},
    }
    if more:
        runs = [{n: report[n] for n in served}]
        for path in more:
            changed = flow.but(model=path)
            engine = open_for(changed, split)
            if not elsewhere:
                _check_model(engine, task)
            again, _ = run_flow(changed, engine, asked, advance, budget_ns, split)
            runs.append({n: t.report(repeat, available, cold) for n, t in again.items()})
        out["seeds"] = spread(runs)
    return out


def open_for(flow: Flow, split: tuple[int, int] = (1, 0)) -> Engine | Partitioned:
    """An engine whose lists are as long as is judged, and that takes nothing for late; or several."""
    judged = flow.but(top_k=LIST, decide=None, disorder=_ALWAYS, exclude_seen=False)
    return Engine(judged) if split[0] == 1 else Partitioned(lambda: Engine(judged), *split)


def spread(runs: list[dict]) -> dict:
    """Mean and standard deviation over runs of one model: {model: {mode: {figure: {mean, sd, n}}}}."""
    out: dict = {}
    for model in runs[0]:
        for mode, figures in runs[0][model].items():
            for name in figures:
                if "_se" in name or name in ("targets", "ndcg@10_windows"):
                    continue
                values = np.array([r[model][mode][name] for r in runs])
                sd = float(values.std(ddof=1))
                cell = {"mean": float(values.mean()), "sd": sd, "n": len(runs)}
                out.setdefault(model, {}).setdefault(mode, {})[name] = cell
    return out


@dataclass(frozen=True)
class _Asked:
    """A task with its items as catalogue indices."""

    task: Task
    item: np.ndarray
    target: np.ndarray
    repeat: np.ndarray

    def cut(self, s: int) -> slice:
        """Targets of list s."""
        return slice(self.task.target_at[s], self.task.target_at[s + 1])

    def beside(self, other: Beside, catalogue, seen: list[np.ndarray]) -> Tally:
        """Ranks of a model that knows items by their ids."""
        n, d = len(catalogue.available), other.item.shape[1]
        table, bias, known = np.zeros((n, d), np.float32), np.zeros(n, np.float32), np.zeros(n, bool)
        at = np.array([catalogue.index(i) for i in other.vocabulary], np.int64)
        here = at >= 0
        table[at[here]], bias[at[here]], known[at[here]] = other.item[here], other.bias[here], True
        return self.logits(other.hidden, table, bias, known & (catalogue.available != 0), seen)

    def logits(self, hidden, table, bias, known: np.ndarray, seen: list[np.ndarray]) -> Tally:
        """Ranks by hidden f4[S, d] @ table f4[N, d] + bias over the items where known bool[N]."""
        tally, warm = Tally(self.task, len(known)), iter(Warm(self.task, self.item, len(known)))
        for base in range(0, len(hidden), 256):
            logits = hidden[base : base + 256] @ table.T + bias
            logits[:, ~known] = -np.inf
            # ranks do not change; a list shows what scores above 0
            logits -= logits[:, known].min(1, keepdims=True) - 1
            for s in range(base, min(base + 256, len(hidden))):
                cut = self.cut(s)
                tally.dense(s, logits[s - base], self.target[cut], self.repeat[cut], seen[s], next(warm)[1])
        return tally


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
    flow: Flow,
    engine: Engine,
    asked: _Asked,
    advance: Callable[[str, int], None],
    budget_ns: int,
    split: tuple[int, int] = (1, 0),
) -> tuple[dict[str, Tally], Lists]:
    """The flow's own lists, once over all items and once without what the key had; and its LM alone.

    A list that took longer than the budget is a miss; where there is one, the lists are also judged as if
    there were no budget.
    """
    items = len(engine.catalogue.available)
    system, patient, lm = Tally(asked.task, items), Tally(asked.task, items), None
    first, late = None, False
    for mode in Tally.MODES:
        lists = _serve(engine, asked.task, asked.item, mode == "new", lambda n, mode=mode: advance(mode, n))
        for s, cold in Warm(asked.task, asked.item, items):
            cut = asked.cut(s)
            shown, given = lists.items[s], (asked.target[cut], asked.repeat[cut], cold)
            patient.listed(mode, s, shown, *given)
            in_time = lists.elapsed_ns[s] <= budget_ns
            late |= not in_time
            system.listed(mode, s, shown if in_time else shown * 0 - 1, *given)
        if mode == "all":
            first = lists
            if lists.hidden.shape[1]:
                tables = engine.table_arrays
                known = (tables["known"] != 0) & (tables["available"] != 0)
                lm = asked.logits(lists.hidden, tables["item"], tables["bias"], known, lists.seen)
            engine = open_for(flow, split)
    name = "counts as served" if lm is None else "LM + counts" + (" + head" if _has_head(engine) else "")
    out = {"LM alone": lm} if lm else {}
    if late:
        out[f"{name}, however late"] = patient
    return out | {name: system}, first


def _serve(
    engine: Engine, task: Task, item: np.ndarray, hide_seen: bool, advance: Callable[[int], None]
) -> Lists:
    """What is served at every moment that the task asks about."""
    asked = np.zeros(len(task.table), bool)
    asked[task.ask] = True
    tiers = np.where(asked, Tier.FULL, Tier.SILENT).astype(np.uint8)
    n, d = len(task.ask), engine.arrays["hidden"].shape[1]
    lists, hidden = np.full((n, LIST), -1, np.int32), np.zeros((n, d), np.float32)
    elapsed_ns, busy_ns = np.zeros(n, np.int64), 0
    history, seen, s = History(), [], 0
    exclude = engine.exclude
    decoder = Decoder(engine.flow.schema, engine.catalogue)
    for base in range(0, len(task.table), _CHUNK):
        part = rows_of(task.table[base : base + _CHUNK], engine.flow.schema)
        offsets = np.arange(base, base + len(part))
        events = decoder.decode(part.values, offsets, np.zeros(len(part), np.int64), engine.flow.source, 0)
        if events.dead:
            raise InputError(f"row {events.dead[0].offset}: {events.dead[0].cause}")
        for at, stop in _cuts(asked[base : base + len(part)], task.frozen[base : base + len(part)]):
            for row in range(base + at, base + stop):
                history.add(int(task.key[row]), int(item[row]))
            own = None
            if hide_seen and asked[base + at]:
                own = history.seen(int(task.key[base + at]))
                exclude[own] = 1
            engine.learn_counts(not task.frozen[base + at])
            while at < stop:
                began = perf_counter_ns()
                scored = engine.step(events[at:stop], tiers[base + at : base + stop])
                took = perf_counter_ns() - began
                busy_ns += took
                if (scored.status == LATE).any():
                    raise InputError(
                        f"rows near {base + at} go back in time; evaluate sorts its events: report this"
                    )
                for j in np.flatnonzero(scored.tier == Tier.FULL).tolist():
                    lists[s], hidden[s], elapsed_ns[s] = scored.items[j], scored.hidden[j], took
                    seen.append(history.seen(int(task.key[base + at + j])))
                    s += 1
                at += len(scored)
                if at < stop and len(scored) < engine.batch_max:
                    engine.checkpoint()
            if own is not None:
                exclude[own] = 0
        advance(len(part))
    return Lists(lists, hidden, seen, elapsed_ns, len(task.table), busy_ns)


def _cuts(asked: np.ndarray, frozen: np.ndarray) -> list[tuple[int, int]]:
    """Runs [at, stop) of one value of `frozen`; an event asked about is a run of its own: it is timed, and
    may hide items of its own."""
    rows = np.flatnonzero(asked)
    changes = np.flatnonzero(np.diff(frozen)) + 1
    edges = sorted({0, len(asked), *changes.tolist(), *rows.tolist(), *(rows + 1).tolist()})
    return list(zip(edges[:-1], edges[1:]))


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

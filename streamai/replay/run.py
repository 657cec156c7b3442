"""History through the engine: the driver of `streamai replay`, `Flow.replay` and `FeatureView.compute`.

It makes batches and carries results; what happens to an event is engine.step's, the same as live.
"""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamai.deadline import Tier
from streamai.engine import open_engine, reopen_with
from streamai.errors import InputError
from streamai.events import Events
from streamai.flow import Flow
from streamai.replay.mapping import Mapping
from streamai.replay.produce import Rows, read_rows
from streamai.replay.progress import Progress
from streamai.replay.read import count_rows, is_recorded
from streamai.replay.record import OUTPUT, Records, TableWriter, read_records
from streamai.replay.versions import Served
from streamai.scored import LATE, Scored
from streamai.wire.codec import Codec
from streamai.wire.output import parse_id, tier_of

CHUNK = 16_384
"""Records decoded at once."""


@dataclass
class Step:
    """One step of one partition, with the records that it came from; scored None = only `events.dead`."""

    records: Records
    events: Events
    scored: Scored | None

    def places(self) -> np.ndarray:
        """Index into `records` of each event i8[n]."""
        return np.searchsorted(self.records.offsets, self.scored.events.rows["offset"])


class Partition:
    """One engine and its way through the records of its partition.

    batch     most events of a step
    folder    where state is kept between runs; None = in memory
    versions  what serves from which offset on, in order; none = `flow` throughout
    """

    def __init__(
        self,
        flow: Flow,
        partition: int,
        batch: int,
        folder: str | pathlib.Path | None,
        versions: Sequence[Served] = (),
    ) -> None:
        self.flow, self.partition, self.batch = flow, partition, batch
        self.kept, self.versions = folder is not None, list(versions)
        if self.versions:
            self.flow = self.versions[0].flow
        self.engine = open_engine(self.flow, folder, partition, batch_max=batch)
        self.codec = Codec(self.flow, self.engine)
        self.turn()

    def turn(self) -> int:
        """Go on with the version that is due; returns the offset of the next one."""
        due = None
        while self.versions and self.versions[0].offset <= self.engine.position:
            due = self.versions.pop(0)
        if due is not None and due.flow is not self.flow:
            if self.engine.position:
                self.engine.checkpoint()
            self.flow = due.flow
            self.engine = reopen_with(
                due.flow, self.partition, self.engine.store, due.others(), batch_max=self.batch
            )
            self.codec = Codec(due.flow, self.engine)
        elif due is not None and due.tables != self.engine.others_digest:
            self.engine.serve_with(due.others())
            self.codec = Codec(self.flow, self.engine)
        return self.versions[0].offset if self.versions else 1 << 62

    def decode(self, records: Records) -> Events:
        """The records from the engine's position on, as Events with their dead letters."""
        return self.codec.decoder.decode(
            records.values, records.offsets, records.kafka_ts_ns, self.flow.source, self.partition
        )

    def steps(self, events: Events, tiers: np.ndarray | Tier) -> Iterator[Scored]:
        """Events through the engine in batches; a full slab or log is checkpointed and gone on with."""
        at, n = 0, len(events)
        while at < n:
            part = events[at : at + self.batch]
            scored = self.engine.step(
                part, tiers[at : at + self.batch] if isinstance(tiers, np.ndarray) else tiers
            )
            if len(scored):
                yield scored
            at += len(scored)
            if len(scored) < len(part):
                self.engine.checkpoint()

    def close(self, whole: bool = True) -> None:
        """Keep the state, where it is kept, and release the store. whole: no exception on the way, which may
        have left a step half done; then the state is that of the last checkpoint."""
        if self.kept and whole:
            self.engine.checkpoint()
            self.engine.store.sync()
        self.engine.close()


class Replay:
    """A flow's engines over history, one a partition; opened as partitions are met.

    tiers     one Tier, or {partition: u1[...] by offset} (see recorded_tiers): beyond its end SILENT
    versions  by partition, see replay.versions
    """

    def __init__(
        self,
        flow: Flow,
        tiers: Tier | dict[int, np.ndarray] = Tier.FULL,
        batch: int = 256,
        folder: str | pathlib.Path | None = None,
        versions: dict[int, list[Served]] | None = None,
    ) -> None:
        self.flow, self.tiers, self.batch, self.folder = flow, tiers, batch, folder
        self.versions = versions or {}
        self.partitions: dict[int, Partition] = {}

    def partition(self, number: int) -> Partition:
        """The partition's engine, opened when first asked for."""
        if number not in self.partitions:
            self.partitions[number] = Partition(
                self.flow, number, self.batch, self.folder, self.versions.get(number, ())
            )
        return self.partitions[number]

    def feed(self, records: Records) -> Iterator[Step]:
        """Records of one partition, in offset order, through its engine, from the engine's position on.

        Encode or copy a step's arrays before the next. Dead letters come last, in a Step without `scored`.
        """
        partition = self.partition(records.partition)
        skip = int(np.searchsorted(records.offsets, partition.engine.position))
        records = _cut(records, skip, len(records))
        while len(records):
            size = int(np.searchsorted(records.offsets, partition.turn()))
            if not size:  # offsets that are not there any more: a version is due before the next record
                partition.engine.position = int(records.offsets[0])
                continue
            yield from self._feed(partition, _cut(records, 0, size))
            records = _cut(records, size, len(records))

    def _feed(self, partition: Partition, records: Records) -> Iterator[Step]:
        """Records of one version."""
        events = partition.decode(records)
        tiers = self.tiers
        if not isinstance(tiers, Tier):
            tiers = _tiers_of(tiers.get(records.partition), events.rows["offset"])
        for scored in partition.steps(events, tiers):
            yield Step(records, events, scored)
        partition.engine.position = int(records.offsets[-1]) + 1
        if events.dead:
            yield Step(records, events, None)

    def close(self, whole: bool = True) -> None:
        """Close every partition; see Partition.close."""
        for partition in self.partitions.values():
            partition.close(whole)
        self.partitions = {}


def replay(
    flow: Flow,
    source: str | pathlib.Path,
    out: str | pathlib.Path | None = None,
    mapping: Mapping | Iterable[str] | None = None,
    tiers: Tier = Tier.FULL,
    recorded: str | pathlib.Path | None = None,
    batch: int = 256,
    partitions: int = 1,
    sort: bool = False,
    folder: str | pathlib.Path | None = None,
    watch: Callable[[str, list[bytes]], None] | None = None,
    versions: dict[int, list[Served]] | None = None,
) -> dict:
    """Run a flow over a file of events or a recorded topic and write its outputs (record.OUTPUT) to `out`.

    recorded    a recorded output topic: every event gets the tier it was served with, one without an output
                is SILENT; equals live byte for byte
    partitions  of a file of events, by key; a recorded topic has its own
    folder      keep the state there, and go on from what is there
    watch       called with (output, values) of every step
    versions    what served from which offset on, see replay.versions

    Returns counts: events, scored, late, dead, silent, outputs by topic, causes of dead letters, seconds.
    Memory does not grow with the events (keys, and one byte an event with `recorded`, apart).
    """
    run = Replay(flow, recorded_tiers(recorded) if recorded else tiers, batch, folder, versions)
    names = {topic: flow.output if kind == "result" else kind for kind, topic in flow.topics.items()}
    counts: Counter = Counter()
    outputs: Counter = Counter()
    causes: Counter = Counter()
    file = TableWriter(out, OUTPUT) if out else None
    total, whole = count_rows(source), False
    try:
        with Progress(f"replay {flow.name}", total) as bar:
            for records in records_of(source, flow, mapping, partitions, sort):
                for step in run.feed(records):
                    _count(step, counts, causes)
                    for name, columns in _outputs(step, run, names):
                        outputs[name] += len(columns["offset"])
                        if watch:
                            watch(name, columns["value"])
                        if file:
                            topic = [name] * len(columns["offset"])
                            file.write(topic=topic, partition=[records.partition] * len(topic), **columns)
                bar.advance(len(records))
            seconds, rate = bar.seconds, bar.rate
        whole = True
    finally:
        run.close(whole)
        if file:
            file.close() if whole else file.leave()
    return {
        "flow": flow.name,
        "events": total,
        **{k: counts[k] for k in ("scored", "late", "dead", "silent")},
        "outputs": dict(outputs),
        "dead_causes": dict(causes.most_common(20)),
        "seconds": round(seconds, 3),
        "events_per_s": round(rate),
    }


def records_of(
    source: str | pathlib.Path,
    flow: Flow,
    mapping: Mapping | Iterable[str] | None = None,
    partitions: int = 1,
    sort: bool = False,
) -> Iterator[Records]:
    """A recorded topic's records as they are, or a file's with offsets counted from 0 in each partition."""
    if is_recorded(source):
        if mapping_given(mapping):
            raise InputError(
                f"{source} is a recorded topic: its records have their own columns; leave out --map"
            )
        yield from read_records(source, CHUNK)
        return
    next_offset = np.zeros(partitions, np.int64)
    for rows in read_rows(source, flow.schema, mapping, partitions, sort, CHUNK):
        yield from split(rows, next_offset)


def mapping_given(mapping: Mapping | Iterable[str] | None) -> bool:
    """Whether the mapping says anything."""
    return mapping is not None and mapping != Mapping() and mapping != []


def split(rows: Rows, next_offset: np.ndarray) -> Iterator[Records]:
    """Rows by partition, in order; next_offset i8[partitions] is counted on. Kafka time: unknown (0)."""
    for partition in np.unique(rows.partition).tolist():
        mine = np.flatnonzero(rows.partition == partition)
        values = [rows.values[i] for i in mine.tolist()] if len(mine) < len(rows) else rows.values
        offsets = next_offset[partition] + np.arange(len(mine))
        next_offset[partition] += len(mine)
        yield Records(partition, values, offsets, np.zeros(len(mine), np.int64))


def recorded_tiers(path: str | pathlib.Path) -> dict[int, np.ndarray]:
    """Tiers of a recorded output topic: {source partition: u1[...] by offset}; no output = SILENT.

    Of a doubled output the first one counts. Outputs that name no tier (features) are FULL.
    """
    tiers: dict[int, np.ndarray] = {}
    for records in read_records(path, CHUNK):
        for value in records.values:
            try:
                _, partition, offset = parse_id(value or b"")
            except ValueError as error:
                raise InputError(f"{path} is not a recorded output topic: {error}") from error
            known = tiers.get(partition)
            if known is None or offset >= len(known):
                grown = np.zeros(max(CHUNK, 2 * (offset + 1)), np.uint8)
                if known is not None:
                    grown[: len(known)] = known
                known = tiers[partition] = grown
            if known[offset] == Tier.SILENT:
                known[offset] = Tier.FULL if (tier := tier_of(value)) is None else tier
    return tiers


def _tiers_of(known: np.ndarray | None, offsets: np.ndarray) -> np.ndarray:
    tiers = np.zeros(len(offsets), np.uint8)
    if known is not None:
        there = offsets < len(known)
        tiers[there] = known[offsets[there]]
    return tiers


def _cut(records: Records, at: int, stop: int) -> Records:
    if at == 0 and stop == len(records):
        return records
    part = slice(at, stop)
    return Records(records.partition, records.values[part], records.offsets[part], records.kafka_ts_ns[part])


def _count(step: Step, counts: Counter, causes: Counter) -> None:
    if step.scored is None:
        counts["dead"] += len(step.events.dead)
        causes.update(_kind_of(d.cause) for d in step.events.dead)
        return
    late = int((step.scored.status == LATE).sum())
    silent = int(((step.scored.tier == Tier.SILENT) & (step.scored.status != LATE)).sum())
    counts.update(late=late, silent=silent, scored=len(step.scored) - late - silent)


def _kind_of(cause: str) -> str:
    """A dead letter's cause without its values, to be counted."""
    return re.sub(r"\d+", "N", cause.partition(":")[0])


def _outputs(step: Step, run: Replay, names: dict[str, str]) -> Iterator[tuple[str, dict]]:
    """(output name, columns offset, value, tier) of one step."""
    scored = step.scored
    if scored is None:
        dead = step.events.dead
        values, offsets = [d.value for d in dead], [d.offset for d in dead]
        yield "dead", {"offset": offsets, "value": values, "tier": [0] * len(dead)}
        return
    offsets = scored.events.rows["offset"]
    for topic, (values, which) in run.partition(step.records.partition).codec.encode(scored).items():
        if values:
            yield names[topic], {"offset": offsets[which], "value": values, "tier": scored.tier[which]}
    late = np.flatnonzero(scored.status == LATE)
    if len(late):
        values = [step.records.values[i] for i in step.places()[late].tolist()]
        yield "late", {"offset": offsets[late], "value": values, "tier": [0] * len(values)}

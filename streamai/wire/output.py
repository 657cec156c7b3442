"""Scored -> values of the output topics: deterministic bytes, and what a reader of them needs.

features         {"id","key","event_ts_ns","features":{name: number or null},"tier","model","plan"}
recommendations  {"id","key","event_ts_ns","items":[id],"scores":[number],"tier","model","plan","catalogue"}
signals          {"id","key","event_ts_ns","mid","signals":{horizon:{"signal","confidence"}},"target","tier",
                 "model","plan"}
scores           {"id","key","event_ts_ns","scores":[number or null],"tier","model","plan"}

An answer to a request has the form of an event's output, with `"request":true` before its tier and, where
the request named candidates that the catalogue has not, `"unknown_candidates":N`; event_ts_ns is the time
that it is the answer for.

id is topic/partition/offset of the event. model, plan and catalogue are digests (null: there is none). Where
other partitions' counts are taken in (Flow.merge), "tables" behind the catalogue is their digest.
Late events and those of tier SILENT give no value. At tier PRIOR signals is {} and target null.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np

from streamai.catalogue import Catalogue
from streamai.deadline import TIER_NAMES, Tier
from streamai.events import MARKET, Request, Schema
from streamai.kernels import format as kernel
from streamai.scored import Scored

NUMBER_BYTES = 28  # the longest number, with its comma
_PADDING = b"\0" * 8  # the kernel copies eight bytes at once

Values = tuple[list[bytes], np.ndarray]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Parts:
    """The fixed text of a line, cut where the kernel puts a number or a text."""

    def __init__(self, topic: str, partition: int, rest: list[str]) -> None:
        head = '{"id":' + _json(f"{topic}/{partition}/")[:-1]
        raw = [part.encode() for part in [head, '","key":"', '","event_ts_ns":', *rest]]
        self.size = sum(map(len, raw))
        self.at = np.zeros(len(raw) + 1, np.int32)
        np.cumsum([len(part) for part in raw], out=self.at[1:])
        self.bytes = np.frombuffer(bytearray(b"".join(raw) + _PADDING), np.uint8)


class Encoder:
    """Encodes the results of one flow.

    topic              the source topic, for the ids
    feature_names      F names, in the order of `Scored.features`
    plan, model, catalogue_digest  digests for the outputs; None where there is none
    catalogue          for the ids of recommended items
    horizons           H names of the signal's horizons; scores are (p_down, p_flat, p_up) for each
    tables             digest of the other partitions' counts; None = not named in the outputs
    schema             of the source: its `crossed` columns (bid, ask) make the mid; null without

    A method returns (values, indices i8[m]): value j belongs to event indices[j].
    """

    def __init__(
        self,
        topic: str,
        feature_names: tuple[str, ...] = (),
        plan: str | None = None,
        model: str | None = None,
        catalogue: Catalogue | None = None,
        catalogue_digest: str | None = None,
        horizons: tuple[str, ...] = (),
        schema: Schema = MARKET,
        tables: str | None = None,
    ) -> None:
        self.topic = topic
        self.feature_names = tuple(feature_names)
        self.plan, self.model, self.catalogue_digest = plan, model, catalogue_digest
        self.tables = tables
        self.catalogue = catalogue if catalogue is not None else Catalogue.of_ids([])
        self.horizons = tuple(horizons)
        self.mid = tuple(schema.column(name) for name in schema.crossed) if schema.crossed else None
        self._id_bytes_max = int(np.diff(self.catalogue.id_at).max(initial=0)) + 3
        self._parts: dict[tuple[str, int], Parts] = {}
        self._out = np.empty(0, np.uint8)

    def features(self, scored: Scored) -> Values:
        """Values of the features topic."""
        names = self.feature_names
        parts = self._of("features", scored, self._features_text)
        room = parts.size + len(names) * NUMBER_BYTES
        return self._run(kernel.features, scored, parts, room, scored.features)

    def recommendations(self, scored: Scored) -> Values:
        """Values of the recommendations topic."""
        parts = self._of("recommendations", scored, self._recommendations_text)
        room = parts.size + scored.items.shape[1] * (self._id_bytes_max + NUMBER_BYTES)
        ids = self.catalogue
        if scored.items.max(initial=-1) >= ids.n:
            raise ValueError(
                f"item {scored.items.max()} of a catalogue of {ids.n}: the encoder was made with another one"
            )
        return self._run(
            kernel.recommendations, scored, parts, room, scored.items, scored.scores, ids.id_bytes, ids.id_at
        )

    def signals(self, scored: Scored) -> Values:
        """Values of the signals topic."""
        parts = self._of("signals", scored, self._signals_text)
        room = parts.size * (1 + len(self.horizons)) + (2 + 2 * len(self.horizons)) * NUMBER_BYTES
        columns = scored.events.columns
        bid, ask = self.mid or (0, 0)
        if self.mid is None:
            columns = np.full((len(scored), 1), np.nan)
        values = scored.scores[:, : 3 * len(self.horizons)]
        return self._run(kernel.signals, scored, parts, room, columns, bid, ask, values, scored.target)

    def scores(self, scored: Scored) -> Values:
        """Values of a flow with a scorer of its own."""
        parts = self._of("scores", scored, self._scores_text)
        room = parts.size + scored.scores.shape[1] * NUMBER_BYTES
        return self._run(kernel.scores, scored, parts, room, scored.scores)

    def _features_text(self) -> list[str]:
        digests = f'"model":{_json(self.model)},"plan":{_json(self.plan)}}}'
        ends = [f'}},"tier":"{TIER_NAMES[t]}",{digests}' for t in Tier]
        if not self.feature_names:
            return [',"features":{' + end for end in ends]
        names = [f"{_json(name)}:" for name in self.feature_names]
        return [',"features":{' + names[0], *("," + name for name in names[1:]), *ends]

    def _recommendations_text(self) -> list[str]:
        digests = f',"model":{_json(self.model)},"plan":{_json(self.plan)}'
        tables = f',"tables":{_json(self.tables)}' if self.tables else ""
        digests += f',"catalogue":{_json(self.catalogue_digest)}{tables}}}'
        return [',"items":[', '],"scores":[', *(f'],"tier":"{TIER_NAMES[t]}"{digests}' for t in Tier)]

    def _signals_text(self) -> list[str]:
        digests = f',"model":{_json(self.model)},"plan":{_json(self.plan)}}}'
        horizons = [f'{"," * (h > 0)}{_json(name)}:{{"signal":' for h, name in enumerate(self.horizons)]
        return [
            ',"mid":', ',"signals":{', ',"confidence":', "}", '},"target":',
            *(f',"tier":"{TIER_NAMES[t]}"{digests}' for t in Tier), *horizons,
        ]  # fmt: skip

    def _scores_text(self) -> list[str]:
        digests = f'"model":{_json(self.model)},"plan":{_json(self.plan)}}}'
        return [',"scores":[', *(f'],"tier":"{TIER_NAMES[t]}",{digests}' for t in Tier)]

    def _of(self, output: str, scored: Scored, text) -> Parts:
        partition = scored.events.partition
        parts = self._parts.get((output, partition))
        if parts is None:
            parts = self._parts[output, partition] = Parts(self.topic, partition, text())
        return parts

    def _run(self, run, scored: Scored, parts: Parts, room: int, *arrays) -> Values:
        """Run a kernel with room for `room` bytes a line beside key, offset and time."""
        n, rows = len(scored), scored.events.rows
        need = n * (room + 48) + 6 * int(rows["key_len"].sum()) + 64
        if len(self._out) < need:
            self._out = np.empty(need + need // 2, np.uint8)
        at = np.zeros(n + 1, np.int64)
        which = np.empty(n, np.int64)
        m = run(
            self._out, at, which, parts.bytes, parts.at, rows, scored.events.key_bytes, scored.status,
            scored.tier, *arrays,
        )  # fmt: skip
        raw = self._out[: at[m]].tobytes()
        values = [raw[a:b] for a, b in pairwise(at[: m + 1].tolist())]
        if scored.events.requests:
            _mark_answers(values, rows["offset"][which[:m]].tolist(), scored.events.requests)
        return values, which[:m]


def _mark_answers(values: list[bytes], offsets: list[int], requests: dict[int, Request]) -> None:
    """Say in the values of requests that they are answers."""
    for j, offset in enumerate(offsets):
        asked = requests.get(offset)
        if asked is None:
            continue
        value = values[j]
        at = value.rfind(b',"tier":"')
        unknown = b',"unknown_candidates":%d' % asked.unknown if asked.unknown else b""
        values[j] = value[:at] + b',"request":true' + unknown + value[at:]


def parse_id(value: bytes) -> tuple[str, int, int]:
    """(topic, partition, offset) of the event that an output value belongs to.

    ValueError if the value is not one of ours: they all begin with their id.
    """
    if not value.startswith(b'{"id":"'):
        raise ValueError(f"not an output of streamai: {value[:40]!r}; expected it to begin with its id")
    topic, partition, offset = value[7 : value.index(b'"', 7)].decode().rsplit("/", 2)
    return topic, int(partition), int(offset)


def tier_of(value: bytes) -> Tier | None:
    """The tier in an output value; None where it has none."""
    at = value.rfind(b'"tier":"')  # a quote inside a key or id is escaped, so this is the field
    if at < 0:
        return None
    at += 8
    return Tier[value[at : value.index(b'"', at)].decode().upper()]


class Deduplicator:
    """Drops outputs that were read before, as an at-least-once writer may repeat them; the first counts.

    Remembers the greatest offset per source partition and output partition: outputs of one source
    partition keep their order within an output partition, so its memory is bounded by their number.
    """

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int, int], int] = {}

    def is_new(self, value: bytes, output_partition: int = 0) -> bool:
        """True the first time the event's output is met; output_partition is where it was read."""
        topic, partition, offset = parse_id(value)
        place = (topic, partition, output_partition)
        if offset <= self.seen.get(place, -1):
            return False
        self.seen[place] = offset
        return True

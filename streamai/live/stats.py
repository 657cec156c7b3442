"""What a worker counts: events by outcome and tier, time by stage, lag. Read by the web pages and the demo.

A histogram has eight buckets to a factor of two, so a quantile is right to within 6 %.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import generate_latest

from streamai.deadline import TIER_NAMES

STAGES = ("decode", "step", "encode", "ack", "event", "checkpoint", "restore", "take_up", "shadow")
"""decode, step, encode: ns of one call. ack: published until acknowledged. event: received until its output
is encoded. checkpoint: one write. restore: opening one partition's engine. take_up: a pause between two
batches, for another model. shadow: a batch through the shadow model, after its outputs were published."""

CAUSES_MAX = 64
OUTCOMES = ("scored", "late", "dead", "poison")
"""poison: failed twice alone inside a step; the three others as in the design."""

_BOUNDS_NS = [10_000 * 2**i for i in range(21)]  # 10 us .. 10 s, for Prometheus


class Histogram:
    """Counts of ns in log buckets; weighted, so that a batch of n events is one call."""

    __slots__ = ("buckets", "count", "max_ns", "sum_ns")

    def __init__(self) -> None:
        self.buckets = [0] * 512
        self.count = self.sum_ns = self.max_ns = 0

    def add(self, ns: int, n: int = 1) -> None:
        ns = max(ns, 0)
        bits = ns.bit_length()
        self.buckets[ns if bits <= 3 else (bits - 3) * 8 + ((ns >> (bits - 4)) & 7)] += n
        self.count += n
        self.sum_ns += ns * n
        self.max_ns = max(self.max_ns, ns)

    @staticmethod
    def _above(i: int) -> int:
        """The first ns above bucket i."""
        return i + 1 if i < 8 else (9 + i % 8) << (i // 8 - 1)

    def quantile(self, q: float) -> float:
        """ns below which a share q of the counts lies; 0.0 without counts."""
        left = q * self.count
        for i, n in enumerate(self.buckets):
            left -= n
            if n and left <= 0:
                below = self._above(i - 1) if i else 0
                return min((below + self._above(i)) / 2, float(self.max_ns))
        return 0.0

    def cumulative(self) -> list[tuple[str, int]]:
        """Prometheus buckets: (upper bound in seconds, counts at or below it)."""
        out, i, total = [], 0, 0
        for bound in _BOUNDS_NS:
            while i < len(self.buckets) and self._above(i) <= bound:
                total += self.buckets[i]
                i += 1
            out.append((repr(bound / 1e9), total))
        return [*out, ("+Inf", self.count)]

    def as_dict(self) -> dict:
        return {
            "n": self.count,
            "p50_us": self.quantile(0.5) / 1e3,
            "p99_us": self.quantile(0.99) / 1e3,
            "p999_us": self.quantile(0.999) / 1e3,
            "max_us": self.max_ns / 1e3,
        }


class Stats:
    """Counters of one worker. Written by its event loop, read by anybody."""

    def __init__(self, flow: str) -> None:
        self.flow = flow
        self.stages = {s: Histogram() for s in STAGES}
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.tiers = dict.fromkeys(TIER_NAMES.values(), 0)
        self.dead_causes: dict[str, int] = {}
        self.failures = 0  # exceptions inside a step
        self.gap = 0  # offsets that the source skipped: compacted, or lost to retention
        self.rebalances = 0
        self.position: dict[int, int] = {}  # by partition: next offset to take
        self.end: dict[int, int] = {}  # by partition: end of the topic, as last heard
        self.fence: dict[int, int] = {}  # by partition: first offset not in the store
        self.state_bytes: dict[int, int] = {}
        self.model: dict[int, str] = {}  # by partition: digest of the one that serves
        self.tables: dict[int, str] = {}  # by partition: digest of the other partitions' counts
        self.shadow: dict[int, str] = {}  # by partition: digest of the one beside it
        self.model_error = ""  # of the last look at the weights file
        self.latest: dict[str, bytes] = {}  # by topic: the last value published, for a view

    def dead(self, cause: str) -> None:
        """Count a dead letter by the first words of its cause: the rest may be anything."""
        self.outcomes["dead"] += 1
        words = re.split(r"[:'\d]", cause, maxsplit=1)[0].strip()
        if words not in self.dead_causes and len(self.dead_causes) >= CAUSES_MAX:
            words = "other"
        self.dead_causes[words] = self.dead_causes.get(words, 0) + 1

    def forget(self, partition: int) -> None:
        """The partition has moved to another worker."""
        for gauge in (
            self.position, self.end, self.fence, self.state_bytes, self.model, self.shadow, self.tables
        ):  # fmt: skip
            gauge.pop(partition, None)

    def lag(self) -> dict[int, int]:
        """Records not yet taken, by partition."""
        return {p: max(0, self.end.get(p, at) - at) for p, at in self.position.items()}

    def as_dict(self) -> dict:
        """JSON-able; what `streamai stats` shows."""
        return {
            "flow": self.flow,
            "events": dict(self.outcomes),
            "tiers": dict(self.tiers),
            "dead_causes": dict(self.dead_causes),
            "failures": self.failures,
            "gap": self.gap,
            "rebalances": self.rebalances,
            "lag": self.lag(),
            "position": dict(self.position),
            "fence": dict(self.fence),
            "state_bytes": dict(self.state_bytes),
            "model": dict(self.model),
            "shadow": dict(self.shadow),
            "tables": dict(self.tables),
            "model_error": self.model_error,
            "stages": {name: h.as_dict() for name, h in self.stages.items()},
            "latest": {t: v.decode(errors="replace") for t, v in self.latest.items()},
        }

    def collect(self) -> Iterator:
        """Metric families for Prometheus."""
        events = CounterMetricFamily("streamai_events", "events by outcome", labels=["outcome"])
        for name, n in self.outcomes.items():
            events.add_metric([name], n)
        tiers = CounterMetricFamily("streamai_tier_events", "events scored, by tier", labels=["tier"])
        for name, n in self.tiers.items():
            tiers.add_metric([name], n)
        dead = CounterMetricFamily("streamai_dead_letters", "dead letters by cause", labels=["cause"])
        for name, n in self.dead_causes.items():
            dead.add_metric([name], n)
        yield from (events, tiers, dead)
        yield CounterMetricFamily("streamai_step_failures", "exceptions inside a step", value=self.failures)
        refused = float(bool(self.model_error))
        yield GaugeMetricFamily("streamai_model_refused", "1 = the weights file is not good", value=refused)
        yield CounterMetricFamily("streamai_offset_gap", "source offsets that never came", value=self.gap)
        yield CounterMetricFamily("streamai_rebalances", "assignments of partitions", value=self.rebalances)
        gauges = (
            ("streamai_lag_records", "records not yet taken", self.lag()),
            ("streamai_fence_offset", "first offset not in the store", self.fence),
            ("streamai_state_bytes", "size of the store on disk", self.state_bytes),
        )
        for name, about, values in gauges:
            gauge = GaugeMetricFamily(name, about, labels=["partition"])
            for partition, value in values.items():
                gauge.add_metric([str(partition)], value)
            yield gauge
        stages = HistogramMetricFamily("streamai_stage_seconds", "time by stage", labels=["stage"])
        for name, h in self.stages.items():
            stages.add_metric([name], buckets=h.cumulative(), sum_value=h.sum_ns / 1e9)
        yield stages

    def prometheus(self) -> bytes:
        """All metrics in Prometheus' text form."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

"""What comes out of a demo's workers, as it comes: counts, latency, tiers, the latest results."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict, deque

from streamai.live.openloop import STAGES, Feed, Latency

LATEST = 6


class Line:
    """One flow in a demo: what went in, what came out, and how long it took."""

    def __init__(self, flow, feed: Feed, titles: dict[str, str]) -> None:
        self.flow, self.feed, self.titles = flow, feed, titles
        self.result = flow.topics["result"]
        self.latency = Latency()
        self.tiers: Counter[str] = Counter()
        self.out: Counter[str] = Counter()  # by topic
        self.latest: deque[dict] = deque(maxlen=LATEST)
        self.hits = self.chances = 0
        self._served: dict[str, list[str]] = {}
        self._asked: dict[str, deque] = defaultdict(deque)
        self._seen: deque[tuple[float, int]] = deque(maxlen=40)

    @property
    def topics(self) -> tuple[str, ...]:
        """The output topics to watch; features are recorded later, not watched."""
        return (self.result, self.flow.topics["late"], self.flow.topics["dead"])

    @property
    def done(self) -> int:
        """Events with an outcome: a result, late, or dead. No event may be without one."""
        return sum(self.out.values())

    def take(self, record, now_ns: int) -> None:
        """One output record of one of the topics."""
        self.out[record.topic] += 1
        if record.topic != self.result:
            return
        value = json.loads(record.value)
        headers = dict(record.headers)
        _, partition, offset = value["id"].rsplit("/", 2)
        i = self.feed.index(int(partition), int(offset))
        self.tiers[value["tier"]] += 1
        self.latency.add(
            self.feed.due_ns(i), int(headers["receive_ts_ns"]), int(headers["elapsed_ns"]), now_ns
        )
        event = json.loads(self.feed.values[i])
        (self._click if "items" in value else self._quote)(event, value)

    def _click(self, event: dict, value: dict) -> None:
        """A hit: the user's next event is about an item of the list served last."""
        before = self._served.get(value["key"])
        if before is not None:
            self.chances += 1
            self.hits += event["item_id"] in before
        self._served[value["key"]] = value["items"]
        self.latest.append(
            {
                "key": value["key"],
                "event": f"{event.get('kind', 'view')} {self.titles.get(event['item_id'], event['item_id'])}",
                "result": " · ".join(self.titles.get(i, i) for i in value["items"][:3]),
            }
        )

    def _quote(self, event: dict, value: dict) -> None:
        """A hit: the mid moved the way that the 1 s signal said, anchored at the event."""
        asked, at, mid = self._asked[value["key"]], value["event_ts_ns"], value["mid"]
        while asked and at >= asked[0][0] + 1_000_000_000:
            _, then, signal = asked.popleft()
            if mid is not None and mid != then:
                self.chances += 1
                self.hits += (mid > then) == (signal > 0)
        signals = value["signals"]
        one = signals.get("1s", {}).get("signal")
        if one and mid is not None:
            asked.append((at, mid, one))
        self.latest.append(
            {
                "key": value["key"],
                "event": f"{event.get('kind', 'quote')} mid {mid if mid is not None else '-'}",
                "result": "  ".join(f"{h} {s['signal']:+.2f}" for h, s in signals.items()) or "abstains",
            }
        )

    def events_per_s(self) -> float:
        """Over the last seconds, by the clock of whoever watches."""
        self._seen.append((time.monotonic(), self.done))
        (t0, n0), (t1, n1) = self._seen[0], self._seen[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0

    def lag(self) -> int:
        """Events sent that have no outcome yet."""
        return max(0, self.feed.sent - self.done)

    def figures(self) -> dict:
        """JSON-able summary."""
        scored = sum(self.tiers.values())
        return {
            "sent": self.feed.sent,
            "scored": self.out[self.result],
            "late": self.out[self.flow.topics["late"]],
            "dead": self.out[self.flow.topics["dead"]],
            "latency_ms": {
                stage: {f"p{p:g}": round(self.latency.ms(stage, p), 3) for p in (50, 99, 99.9)}
                for stage in STAGES
            },
            "latency_max_ms": round(self.latency.max_ms(), 3),
            "tiers": {t: round(n / max(1, scored), 4) for t, n in self.tiers.items()},
            "hit_ratio": round(self.hits / self.chances, 4) if self.chances else None,
        }


def plain(lines: list[Line]) -> str:
    """One line of text for where there is no terminal."""
    parts = []
    for line in lines:
        total, scored = line.latency, max(1, sum(line.tiers.values()))
        tiers = " ".join(f"{t} {n / scored:.1%}" for t, n in line.tiers.most_common())
        parts.append(
            f"{line.flow.source}: {line.done:,} of {len(line.feed.values):,}, {line.events_per_s():.0f}/s, "
            f"p50 {total.ms('total', 50):.1f} p99 {total.ms('total', 99):.1f} ms, {tiers}, lag {line.lag()}"
        )
    return " | ".join(parts)


def view(lines: list[Line], left_s: float):
    """The live screen as a rich renderable."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    counts = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("topic", "events/s", "scored", "late", "dead", "lag", "tiers"):
        counts.add_column(name, justify="left" if name in ("topic", "tiers") else "right")
    times = Table(box=None, pad_edge=False, header_style="bold")
    times.add_column("ms, p50 / p99")
    for stage in ("broker in", "worker", "broker out", "intended send to consumed"):
        times.add_column(stage, justify="right")
    latest = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for name, ratio in (("key", 1), ("event", 3), ("answer", 6)):
        latest.add_column(name, ratio=ratio, no_wrap=True, overflow="ellipsis")
    for line in lines:
        f, scored = line.flow, max(1, sum(line.tiers.values()))
        tiers = "  ".join(f"{t} {n / scored:.1%}" for t, n in line.tiers.most_common())
        numbers = (line.out[line.result], line.out[f.topics["late"]], line.out[f.topics["dead"]], line.lag())
        counts.add_row(f.source, f"{line.events_per_s():,.0f}", *(f"{n:,}" for n in numbers), tiers)
        times.add_row(
            f.source, *(f"{line.latency.ms(s, 50):.2f} / {line.latency.ms(s, 99):.2f}" for s in STAGES)
        )
        for entry in list(line.latest)[::-1]:
            latest.add_row(entry["key"], entry["event"], entry["result"])
    head = Text(f"streamai demo: {left_s:.0f} s left, Ctrl-C ends it", style="bold")
    return Group(head, "", counts, "", times, "", latest)

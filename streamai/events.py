"""What goes in: the schemas of clicks and market events, and a batch of them as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# kinds of a click stream
VIEW, CLICK, CART, BUY = 1, 2, 3, 4
# a question, of any stream: it is answered, and changes no state
REQUEST_KIND, REQUEST = "request", 5
# kinds of a market stream; either may carry the best prices after the event
QUOTE, TRADE, CANCEL = 1, 2, 3

EVENT = np.dtype(
    [
        ("hash0", "u8"),
        ("hash1", "u8"),
        ("event_ts_ns", "i8"),
        ("kafka_ts_ns", "i8"),
        ("offset", "i8"),
        ("item", "i4"),
        ("item_hash", "u4"),
        ("kind", "i4"),
        ("key_at", "i4"),
        ("key_len", "i4"),
        ("spare", "i4"),
    ],
    align=True,
)
"""One event: hash of the key (128 bits), times in ns, Kafka offset, catalogue index of the item
(-1 = not in the catalogue or none), 32 bits of the item id's hash (for unknown-item tokens; 0 = no
item), kind, and where the key's bytes lie in `Events.key_bytes`."""


@dataclass(frozen=True)
class Column:
    """One numeric field of an event.

    rule: "any" (finite), "positive" (> 0), "non_negative" (>= 0), "sign" (-1, 0 or 1).
    A missing or null optional column is NaN.
    """

    name: str
    rule: str = "any"
    required: bool = False


@dataclass(frozen=True)
class Schema:
    """Names of the fields on the wire, in parquet and in views; the same in all three."""

    name: str
    key: str
    item: str | None
    kinds: dict[str, int]
    columns: tuple[Column, ...]
    crossed: tuple[str, str] | None = None  # (bid, ask): bid > ask is a dead letter
    default_kind: str | None = None  # the kind of an event that names none
    needs: tuple[tuple[str, str], ...] = ()  # (kind, column): an event of that kind must have it

    def column(self, name: str) -> int:
        """Index of a column by name; KeyError with the known names."""
        for i, c in enumerate(self.columns):
            if c.name == name:
                return i
        raise KeyError(f"{self.name} has no column {name!r}; it has {[c.name for c in self.columns]}")


CLICKS = Schema(
    name="clicks",
    key="user_id",
    item="item_id",
    kinds={"view": VIEW, "click": CLICK, "cart": CART, "buy": BUY},
    columns=(
        Column("price", "non_negative"),
        Column("quantity", "non_negative"),
        Column("dwell_ms", "non_negative"),
    ),
    default_kind="view",
)

MARKET = Schema(
    name="market",
    key="instrument",
    item=None,
    kinds={"quote": QUOTE, "trade": TRADE, "cancel": CANCEL},
    columns=(
        Column("bid", "positive"),
        Column("ask", "positive"),
        Column("bid_size", "non_negative"),
        Column("ask_size", "non_negative"),
        Column("price", "positive"),
        Column("size", "non_negative"),
        Column("side", "sign"),  # 1 buyer-initiated, -1 seller-initiated, 0 or missing unknown
    ),
    crossed=("bid", "ask"),
    default_kind="quote",
    needs=(("trade", "price"), ("trade", "size")),
)

SCHEMAS = {s.name: s for s in (CLICKS, MARKET)}


@dataclass(frozen=True)
class Request:
    """What a request asks beside its key; see docs/data.md.

    k           items wanted; 0 = the flow's top_k
    candidates  i4[m] catalogue indices, only these are ranked; None = the whole catalogue
    unknown     how many candidates are not in the catalogue
    exclude     i4[m] indices never to answer with
    filters     what the items must be, as `catalogue_filter.parse` gives it; () = anything
    """

    k: int = 0
    candidates: np.ndarray | None = None
    unknown: int = 0
    exclude: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    filters: tuple = ()


@dataclass
class Events:
    """A batch of one partition in offset order. All arrays have n rows.

    rows      EVENT[n]    see EVENT
    columns   f8[n, C]    the schema's columns in its order; NaN = missing
    key_bytes u1[...]     the keys, UTF-8; event i has key_bytes[key_at : key_at + key_len]
    receive_ts_ns         when the fetch that brought the batch came back (0 in replay)
    requests              offset -> Request, of the rows that are requests; a cut of a batch shares it
    """

    topic: str
    partition: int
    rows: np.ndarray
    columns: np.ndarray
    key_bytes: np.ndarray
    receive_ts_ns: int = 0
    dead: list = field(default_factory=list)  # wire.dead_letter.DeadLetter, in offset order
    requests: dict[int, Request] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, cut: slice) -> Events:
        """A view of rows cut.start..cut.stop; shares memory, carries no dead letters."""
        return Events(
            self.topic, self.partition, self.rows[cut], self.columns[cut], self.key_bytes, self.receive_ts_ns,
            requests=self.requests,
        )  # fmt: skip

    def key(self, i: int) -> bytes:
        """The bytes of event i's key."""
        row = self.rows[i]
        at = int(row["key_at"])
        return self.key_bytes[at : at + int(row["key_len"])].tobytes()

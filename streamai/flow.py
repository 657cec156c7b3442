"""A flow: which topic is read, what is kept, who scores, what comes out. Checked when it is built."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from streamai.deadline import Tier
from streamai.declaration import duration_ns
from streamai.errors import DeclarationError
from streamai.events import SCHEMAS, Schema
from streamai.kernels.counts import WINDOW

HORIZONS = ("100ms", "1s", "5s", "10ev", "100ev")
"""What a market model forecasts: the sign of the mid's move after so much time or so many events."""

RESERVED = frozenset({"models", "tables", "shadow", "shared", "faust"})
"""Names in the state folder that are no flow's."""

CATCH_UP = {"prior": Tier.PRIOR, "full": Tier.FULL, "silent": Tier.SILENT}


@dataclass(frozen=True)
class Counts:
    """Item-to-item counts kept by a flow with a catalogue; defaults and reasons: docs/decisions.md.

    neighbours  slots an item; window: how many items before an event it is linked to
    tau_days    decay time of counts and popularity; fast_tau_days: of the popularity used as fallback
    """

    neighbours: int = 64
    window: int = 20
    scored: int = 15
    tau_days: float = 365.0
    fast_tau_days: float = 7.0

    def __post_init__(self) -> None:
        if not 1 <= self.window <= WINDOW:
            raise DeclarationError(f"counts: window={self.window}; give 1 to {WINDOW} items")
        if min(self.neighbours, self.scored) < 1 or min(self.tau_days, self.fast_tau_days) <= 0:
            raise DeclarationError("counts: neighbours, scored, tau_days and fast_tau_days must be positive")


@dataclass(frozen=True)
class Online:
    """The ranking head goes on learning while it serves (kernels/online.py).

    rate       step of the head's linear part; bias_rate: of every item's bias
    refresh    the lists are made with what was learnt up to now ("0s"), or up to the beginning of this period
               of event time ("1h", "1d")
    """

    rate: float = 0.0002
    bias_rate: float = 0.02
    refresh: str = "0s"

    def __post_init__(self) -> None:
        if min(self.rate, self.bias_rate) < 0:
            raise DeclarationError("online: rate and bias_rate must not be negative")
        if self.refresh_ns < 0:
            raise DeclarationError(f"online: refresh={self.refresh!r}; write a length of time such as '1h'")

    @property
    def refresh_ns(self) -> int:
        return duration_ns(self.refresh) if self.refresh not in ("0", "0s") else 0


@dataclass(frozen=True)
class Flow:
    """One source topic, its views and its scorer.

    source            topic to read; its partitions are the flow's
    views             FeatureView classes keyed by the schema's key or by its item
    schema            events.CLICKS or events.MARKET; default: the one named by the views' source
    catalogue         path of items (csv or parquet) or a Catalogue; a flow with one recommends
    model             path of a weights file; None: features only (or counts only, with a catalogue)
    scorer            the user's own njit function (features f4[n, F], hidden f4[n, d], out f4[n, k]), run on
                      whole batches after the loop; `scorer_width` is k
    decide            (scored, events) -> target f8[n], row by row: no row may look at another
    budget_ms         from receive time to the scored event
    disorder          how far behind the newest event time an event may come before it is late
    catch_up          what events past their deadline get: "prior", "full" or "silent" (state only)
    on_error          a poison event goes to the dead-letter topic, or "stop"s the worker
    k_max             most items that a request may ask for; 0 = top_k
    scan_max          a catalogue of more items is searched by an index (`streamai index`), not scanned whole
    exclude_seen      leave out items still in the key's event ring
    online            the ranking head goes on learning from the stream: Online(...); None: it does not
    merge             how often a partition takes in what the others count ("5m"); "": it knows its own alone
    """

    name: str
    source: str
    views: tuple = ()
    schema: Schema | None = None
    catalogue: object = None
    model: str | Path | None = None
    scorer: Callable | None = None
    scorer_width: int = 1
    decide: Callable | None = None
    output: str = ""
    budget_ms: float = 5.0
    top_k: int = 10
    k_max: int = 0
    ring: int = 64
    candidates: int = 200
    scan_max: int = 131_072
    disorder: str = "10s"
    max_skew: str = "5m"
    catch_up: str = "prior"
    on_error: str = "dead_letter"
    publish_features: bool = True
    exclude_seen: bool = False
    horizons: tuple[str, ...] = HORIZONS
    counts: Counts = field(default_factory=Counts)
    online: Online | None = None
    merge: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if self.schema is None:
            object.__setattr__(self, "schema", self._schema_of_views())
        for view in self.views:
            if view.key not in (self.schema.key, self.schema.item):
                raise DeclarationError(
                    f"flow {self.name!r}: {view.__name__} is keyed by {view.key!r}; "
                    f"events of {self.schema.name!r} "
                    f"have {self.schema.key!r}" + (f" and {self.schema.item!r}" if self.schema.item else "")
                )
        if self.item_views and self.catalogue is None:
            raise DeclarationError(
                f"flow {self.name!r}: {self.item_views[0].__name__} is keyed by item; "
                "give the flow a catalogue"
            )
        if self.catch_up not in CATCH_UP:
            raise DeclarationError(
                f"flow {self.name!r}: catch_up={self.catch_up!r}; write one of {list(CATCH_UP)}"
            )
        if self.on_error not in ("dead_letter", "stop"):
            raise DeclarationError(
                f"flow {self.name!r}: on_error={self.on_error!r}; write 'dead_letter' or 'stop'"
            )
        if self.budget_ms <= 0 or min(self.top_k, self.ring, self.scorer_width) < 1:
            raise DeclarationError(
                f"flow {self.name!r}: budget_ms, top_k, ring and scorer_width must be positive"
            )
        if self.candidates < self.top_k:
            raise DeclarationError(
                f"flow {self.name!r}: candidates={self.candidates} is below top_k={self.top_k}"
            )
        if self.k_max and not self.top_k <= self.k_max <= self.candidates:
            raise DeclarationError(
                f"flow {self.name!r}: k_max={self.k_max}; give top_k={self.top_k} to candidates="
                f"{self.candidates}, or 0"
            )
        if self.name in RESERVED:
            raise DeclarationError(
                f"flow {self.name!r}: a worker keeps files of its own under {sorted(RESERVED)} in the state "
                "folder; give the flow another name"
            )
        if self.merge and (self.catalogue is None or duration_ns(self.merge) < 1):
            raise DeclarationError(
                f"flow {self.name!r}: merge={self.merge!r}; write a length of time such as '5m', of a flow "
                "with a catalogue (only what follows which item is merged)"
            )
        if not self.output:
            object.__setattr__(self, "output", self._default_output())

    def _schema_of_views(self) -> Schema:
        names = {v.source for v in self.views}
        if len(names) != 1 or not names <= SCHEMAS.keys():
            raise DeclarationError(
                f"flow {self.name!r}: a flow reads one topic; its views name {sorted(names)}, "
                f"known schemas are {sorted(SCHEMAS)}. Give views of one source, or schema=."
            )
        return SCHEMAS[names.pop()]

    def _default_output(self) -> str:
        if self.scorer is not None:
            return "scores"
        if self.catalogue is not None:
            return "recommendations"
        return "signals" if self.model is not None else "features"

    @property
    def key_views(self) -> tuple:
        return tuple(v for v in self.views if v.key == self.schema.key)

    @property
    def item_views(self) -> tuple:
        return tuple(v for v in self.views if v.key == self.schema.item)

    @property
    def answer_max(self) -> int:
        """Most items of an answer to a request."""
        return self.k_max or self.top_k

    @property
    def topics(self) -> dict[str, str]:
        """Topic of each kind of output: result (none for features only), features, late, dead; versions (of
        a flow with a model: from which offset on which one served)."""
        out = {
            "features": f"{self.source}.features",
            "late": f"{self.source}.late",
            "dead": f"{self.source}.dead",
        }
        if self.output != "features":
            out["result"] = self.output
        if self.model is not None or self.merge:
            out["versions"] = f"{self.name}.versions"
        return out

    def but(self, **changes) -> Flow:
        """The same flow with some fields changed."""
        if {"catalogue", "model", "scorer"} & changes.keys() and "output" not in changes:
            changes["output"] = ""
        return replace(self, **changes)

    def replay(self, events, **options):
        """Run the flow over a table of events (polars DataFrame or path); returns a DataFrame of results."""
        from streamai.replay.table import replay_frame

        return replay_frame(self, events, **options)


def load(name: str) -> Flow:
    """The flow of a module such as `agents.recommend`, imported from the current folder."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise DeclarationError(
                f"no module {name!r} in {here}; run from the folder that holds agents/ and features/"
            ) from error
        raise
    flow = getattr(module, "flow", None)
    if not isinstance(flow, Flow):
        raise DeclarationError(f"{name} has no `flow = Flow(...)`")
    return flow

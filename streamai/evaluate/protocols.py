"""What is asked when, and of whom: prequential and leave-one-out, without leaks.

A protocol turns a table of events into a Task: the events to feed, in order, and the moments at which the
list served to a key is judged by items that key meets next. The items a list is judged by are fed only
afterwards, or never. Events that share key and time (a basket) are judged by the list served before them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from streamai.errors import InputError
from streamai.events import Schema

PROTOCOLS = ("leave-one-out", "prequential")
FIT_SHARE = 0.6


@dataclass(frozen=True)
class Task:
    """Events to feed and lists to judge.

    table      the events, in feeding order: key, item, kind, event_ts_ns, the schema's columns
    key        i8[n] number of each event's key
    frozen     bool[n]: the event moves its key's own state, but not what keys share
    ask        i8[S] rows after which the key's list is judged, ascending
    target_at  i8[S + 1]: list s is judged by targets target_at[s] .. target_at[s + 1]
    target     list of item ids, flat
    facts      what the report says about the cut
    """

    table: pl.DataFrame
    key: np.ndarray
    frozen: np.ndarray
    ask: np.ndarray
    target_at: np.ndarray
    target: list[str]
    facts: dict


def leave_one_out(table: pl.DataFrame, schema: Schema) -> Task:
    """Each key's last event is the target; shared counts are fed to its third-last, its own state to its
    second-last. `table` holds good events in order; keys with fewer than two are left out."""
    keyed = _numbered(table, schema)
    back = keyed.select(pl.len().over("_key") - pl.int_range(pl.len()).over("_key") - 1).to_series()
    keyed = keyed.with_columns(back.alias("_back"), pl.col(schema.item).shift(-1).over("_key").alias("_next"))
    ties = pl.col("event_ts_ns") == pl.col("event_ts_ns").shift(-1).over("_key")
    keyed = keyed.with_columns(ties.alias("_tie"))
    # the last steps before the targets come after all others, so that every list knows the same shared state
    feed = keyed.filter(pl.col("_back") >= 1).with_columns((pl.col("_back") == 1).alias("_frozen"))
    feed = feed.sort("_frozen", maintain_order=True)
    last = feed.filter(pl.col("_frozen"))
    if not len(last):
        raise InputError("leave-one-out: no key has two events")
    facts = {
        "fed": len(feed),
        "keys": len(last),
        "targets_at_the_time_of_the_event_before": int(last["_tie"].sum()),
    }
    frozen = feed["_frozen"].to_numpy()
    ask = np.flatnonzero(frozen)
    columns = [c for c in feed.columns if not c.startswith("_")]
    key = feed["_key"].to_numpy().astype(np.int64)
    return Task(
        feed.select(columns), key, frozen, ask, np.arange(len(ask) + 1), last["_next"].to_list(), facts
    )


def prequential(
    table: pl.DataFrame, schema: Schema, share: float = FIT_SHARE, sample: int = 20_000, seed: int = 0
) -> Task:
    """Everything is fed in the order of time; after the first `share` of it, each event of a key is a target
    of the list that was served to the key before it.

    table   good events in order of time
    sample  judge so many lists, drawn evenly; 0 = all. All events are fed in any case.
    """
    keyed = _numbered(table, schema)
    times = keyed["event_ts_ns"]
    first, last = int(times.min()), int(times.max())
    cut_ns = first + int((last - first) * share)
    changes = (pl.col("event_ts_ns") != pl.col("event_ts_ns").shift(1).over("_key")).fill_null(True)
    keyed = keyed.with_row_index("_row").with_columns(changes.cum_sum().over("_key").alias("_basket"))
    baskets = keyed.group_by("_key", "_basket", maintain_order=True).agg(
        pl.col("_row").last().alias("_last"), pl.col("event_ts_ns").first(), pl.col(schema.item)
    )
    baskets = baskets.with_columns(pl.col("_last").shift(1).over("_key").alias("_ask"))
    tested = baskets.filter(pl.col("event_ts_ns") >= cut_ns)
    judged = tested.drop_nulls("_ask")
    facts = {
        "fed": len(keyed),
        "cut_ns": cut_ns,
        "fit_events": int((times < cut_ns).sum()),
        "lists": len(judged),
        "first_baskets_without_a_list": len(tested) - len(judged),
    }
    if not len(judged):
        raise InputError(
            f"prequential: no key has an event after the first {share:.0%} of time and one before"
        )
    if 0 < sample < len(judged):
        chosen = np.sort(np.random.default_rng(seed).choice(len(judged), sample, replace=False))
        judged = judged[chosen]
    judged = judged.sort("_ask")
    facts["lists_judged"] = len(judged)
    targets = judged.select(pl.col(schema.item)).to_series()
    at = np.concatenate([[0], np.cumsum(targets.list.len().to_numpy())]).astype(np.int64)
    columns = [c for c in keyed.columns if not c.startswith("_")]
    n = len(keyed)
    return Task(
        keyed.select(columns), keyed["_key"].to_numpy().astype(np.int64), np.zeros(n, bool),
        judged["_ask"].to_numpy().astype(np.int64), at, targets.explode().to_list(), facts,
    )  # fmt: skip


def _numbered(table: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """With `_key`, the keys' numbers. Events without an item are left out: no list is judged by them."""
    table = table.filter(pl.col(schema.item).is_not_null())
    return table.with_columns((pl.col(schema.key).rank("dense") - 1).cast(pl.Int64).alias("_key"))

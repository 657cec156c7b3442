"""Tables of events to sequences of one key each, their splits, and length-bucketed batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from streamai.catalogue import hash_id
from streamai.errors import InputError
from streamai.kernels.lm import UNKNOWN
from streamai.kernels.sequences import gap_buckets

ROUND = 8
"""Padded lengths are rounded up to this, so that the allocator meets few sizes."""


@dataclass(frozen=True)
class Sequences:
    """Events of n keys, each key's in arrival order, one after another in flat arrays.

    start  i8[n + 1]  key k has events start[k] .. start[k + 1]
    token  i4[N]      vocabulary index, or V + (item hash & 63) outside the vocabulary
    kind   i4[N]      0..7
    gap    i4[N]      bucket of the time since the key's newest event (`kernels/lm.py`), 0 without time
    side   f4[N, S]   continuous inputs, S may be 0
    row    i8[N]      row of the event in the table it came from
    keys   list[str]  key of each sequence
    """

    start: np.ndarray
    token: np.ndarray
    kind: np.ndarray
    gap: np.ndarray
    side: np.ndarray
    row: np.ndarray
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def events(self) -> int:
        return len(self.token)

    def lengths(self) -> np.ndarray:
        return np.diff(self.start)


def vocabulary(items: pl.Series, least: int = 1) -> list[str]:
    """Item ids met at least `least` times, most frequent first, then by id."""
    met = items.drop_nulls().value_counts().filter(pl.col("count") >= least)
    return met.sort(["count", items.name], descending=[True, False])[items.name].to_list()


def sequences(table: pl.DataFrame, vocab: list[str], *, time: bool = True) -> Sequences:
    """Sequences of a table of clicks in arrival order.

    table: `user_id` and `item_id` (strings), `kind` (0..7; missing column = 1), `event_ts_ns` (i8; a missing
    column or time=False gives gap 0 everywhere). Events without an item are left out, as they carry no token.
    """
    for name in ("user_id", "item_id"):
        if name not in table.columns:
            raise InputError(f"training table: no column {name!r} in {table.columns}; map one with --map")
    table, start, keys = by_key(table, "user_id", "item_id")
    index = pl.DataFrame({"item_id": vocab, "token": np.arange(len(vocab), dtype=np.int32)})
    table = table.join(index, on="item_id", how="left", maintain_order="left")
    token = table["token"].fill_null(-1).to_numpy().astype(np.int32)
    for i in np.flatnonzero(token < 0):
        token[i] = len(vocab) + unknown_token(table["item_id"][int(i)])
    kind = table["kind"].to_numpy() if "kind" in table.columns else np.ones(len(token))
    side = np.zeros((len(token), 0), np.float32)
    row = table["row"].to_numpy().astype(np.int64)
    return Sequences(start, token, kind.astype(np.int32), gaps(table, time), side, row, keys)


def by_key(table: pl.DataFrame, key: str, *needed: str) -> tuple[pl.DataFrame, np.ndarray, list[str]]:
    """The table with each key's rows together in arrival order, keys by first appearance; where each begins
    i8[n + 1]; and the keys. Column `row` keeps the place in `table`; rows with a null in `needed` go."""
    table = table.with_row_index("row").filter(pl.all_horizontal(pl.col(key, *needed).is_not_null()))
    groups = table.group_by(key, maintain_order=True).len("n").with_row_index("key_index")
    # stable, so each key's arrival order stays
    table = table.join(groups, on=key, how="left", maintain_order="left")
    table = table.sort("key_index", maintain_order=True)
    start = np.concatenate([[0], np.cumsum(groups["n"].to_numpy())]).astype(np.int64)
    return table, start, groups[key].to_list()


def gaps(table: pl.DataFrame, time: bool) -> np.ndarray:
    """Gap bucket i4[N] of each row of a table from `by_key`: time since the key's newest event before it."""
    out = np.zeros(len(table), np.uint8)
    if time and "event_ts_ns" in table.columns:
        ts = pl.col("event_ts_ns")
        since = ts - ts.cum_max().shift(1).over("key_index")
        gap_buckets(table.select(since.fill_null(0)).to_series().to_numpy().astype(np.int64), out)
    return out.astype(np.int32)


def unknown_token(item_id: str) -> int:
    """Which of the 64 unknown tokens stands for an item outside the vocabulary (from `EVENT.item_hash`)."""
    return ((hash_id(item_id)[0] & 0xFFFFFFFF) | 1) & (UNKNOWN - 1)


@dataclass(frozen=True)
class Batch:
    """Padded on the right: token, kind, gap i8[B, T], side f4[B, T, S], length i8[B]; and, for the loss,
    `target` i8[M] with `at` i8[M], the flat position b * T + t of the event before it, and `event` i8[M],
    that event's place in the sequences."""

    token: torch.Tensor
    kind: torch.Tensor
    gap: torch.Tensor
    side: torch.Tensor
    length: torch.Tensor
    target: torch.Tensor
    at: torch.Tensor
    event: torch.Tensor


def batch(seq: Sequences, first: np.ndarray, length: np.ndarray, vocab: int) -> Batch:
    """Events first[b] .. first[b] + length[b] of the flat arrays as one padded batch."""
    T = -(-int(length.max()) // ROUND) * ROUND
    steps = np.arange(T)
    real = steps < length[:, None]
    index = np.where(real, first[:, None] + steps, 0)
    arrays = (np.where(real, a[index], 0).astype(np.int64) for a in (seq.token, seq.kind, seq.gap))
    tensors = [torch.from_numpy(a) for a in arrays]
    side = torch.from_numpy(np.where(real[..., None], seq.side[index], 0))
    token = tensors[0].numpy()
    # every position predicts the next event's token, where that is in the vocabulary
    wanted = real[:, 1:] & (token[:, 1:] < vocab)
    b, t = np.nonzero(wanted)
    target = torch.from_numpy(token[:, 1:][b, t])
    event = torch.from_numpy(index[b, t].astype(np.int64))
    return Batch(*tensors, side, torch.from_numpy(length), target, torch.from_numpy(b * T + t), event)


def windows(
    seq: Sequences, window: int, cover: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Begin and length of the windows of one pass, each at least 2 and at most `window` events of one key.

    One window a key, a random one where it has more events; or, with `cover`, all of its events, cut at a
    random phase.
    """
    lengths = seq.lengths()
    use = np.flatnonzero(lengths >= 2)
    if not cover:
        take = np.minimum(lengths[use], window)
        return seq.start[use] + (rng.random(len(use)) * (lengths[use] - take + 1)).astype(np.int64), take
    first, take = [], []
    for a, n in zip(seq.start[use], lengths[use]):
        phase = int(rng.integers(2, window + 1)) if n > window else window
        cuts = np.unique(np.concatenate([[0], np.arange(phase, n, window), [n]]))
        first.append(a + cuts[:-1])
        take.append(np.diff(cuts))
    first, take = np.concatenate(first), np.concatenate(take)
    return first[take >= 2], take[take >= 2]


def epoch(
    seq: Sequences, vocab: int, size: int, window: int, rng: np.random.Generator, cover: bool = False
) -> Iterator[Batch]:
    """Batches of one pass over `windows`, bucketed by length, in random order."""
    first, take = windows(seq, window, cover, rng)
    order = np.argsort(take + rng.random(len(take)), kind="stable")
    cuts = [order[i : i + size] for i in range(0, len(order), size)]
    for c in rng.permutation(len(cuts)):
        yield batch(seq, first[cuts[c]], take[cuts[c]], vocab)


def steps_of(seq: Sequences, size: int, window: int, cover: bool = False) -> int:
    """How many batches one epoch has; with `cover` at most: a phase may need a window less."""
    lengths = seq.lengths()
    lengths = lengths[lengths >= 2]
    count = int(np.where(lengths > window, -(-lengths // window) + 1, 1).sum()) if cover else len(lengths)
    return -(-count // size)

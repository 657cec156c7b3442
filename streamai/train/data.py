"""Tables of events to sequences of one key each, their splits, and length-bucketed batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch

from streamai.errors import InputError
from streamai.kernels import sequences as kernel

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

    def without_last(self, n: int) -> Sequences:
        """The same without each key's last n events; keys left with nothing go."""
        stop = self.start[1:] - n
        return self._keep(np.arange(self.events) < np.repeat(stop, self.lengths()))

    def until(self, row: int) -> Sequences:
        """The same with only the events of the table's first `row` rows."""
        return self._keep(self.row < row)

    def _keep(self, keep: np.ndarray) -> Sequences:
        kept = np.add.reduceat(keep.astype(np.int64), self.start[:-1])
        keys = [k for k, n in zip(self.keys, kept, strict=True) if n]
        start = np.concatenate([[0], np.cumsum(kept[kept > 0])])
        arrays = {n: getattr(self, n)[keep] for n in ("token", "kind", "gap", "side", "row")}
        return replace(self, start=start, keys=keys, **arrays)


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
    table = table.with_row_index("row").filter(pl.col("item_id").is_not_null())
    index = pl.DataFrame({"item_id": vocab, "token": np.arange(len(vocab), dtype=np.int32)})
    table = table.join(index, on="item_id", how="left", maintain_order="left")
    groups = table.group_by("user_id", maintain_order=True).agg(pl.col("row").len().alias("n"))
    # a stable sort by the key's first appearance keeps each key's arrival order
    order = table.join(groups.with_row_index("key"), on="user_id", how="left", maintain_order="left")
    table = order.sort("key", maintain_order=True)
    start = np.concatenate([[0], np.cumsum(groups["n"].to_numpy())]).astype(np.int64)
    token = table["token"].fill_null(-1).to_numpy().copy()
    for i in np.flatnonzero(token < 0):
        token[i] = len(vocab) + unknown_token(table["item_id"][int(i)])
    kind = table["kind"].to_numpy() if "kind" in table.columns else np.ones(len(token))
    gap = np.zeros(len(token), np.int32)
    if time and "event_ts_ns" in table.columns:
        kernel.gap_buckets(table["event_ts_ns"].to_numpy().astype(np.int64), start, gap)
    side = np.zeros((len(token), 0), np.float32)
    rows, keys = table["row"].to_numpy().astype(np.int64), groups["user_id"].to_list()
    return Sequences(start, token.astype(np.int32), kind.astype(np.int32), gap, side, rows, keys)


def unknown_token(item_id: str) -> int:
    """Which of the 64 unknown tokens stands for an item outside the vocabulary."""
    raw = np.frombuffer(item_id.encode(), np.uint8)
    return kernel.item_hash(raw) & 63


@dataclass(frozen=True)
class Batch:
    """Padded on the right: token, kind, gap i8[B, T], side f4[B, T, S], length i8[B]; and, for the loss,
    `target` i8[M] with `at` i8[M], the flat position b * T + t of the event before it."""

    token: torch.Tensor
    kind: torch.Tensor
    gap: torch.Tensor
    side: torch.Tensor
    length: torch.Tensor
    target: torch.Tensor
    at: torch.Tensor


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
    return Batch(*tensors, side, torch.from_numpy(length), target, torch.from_numpy(b * T + t))


def epoch(seq: Sequences, vocab: int, size: int, window: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Batches of one pass: one window of at most `window` events a key (a random one where it has more),
    bucketed by length, in random order."""
    lengths = seq.lengths()
    use = np.flatnonzero(lengths >= 2)
    take = np.minimum(lengths[use], window)
    first = seq.start[use] + (rng.random(len(use)) * (lengths[use] - take + 1)).astype(np.int64)
    order = np.argsort(take + rng.random(len(use)), kind="stable")
    cuts = [order[i : i + size] for i in range(0, len(order), size)]
    for c in rng.permutation(len(cuts)):
        yield batch(seq, first[cuts[c]], take[cuts[c]], vocab)


def steps_of(seq: Sequences, size: int) -> int:
    """How many batches one epoch has."""
    return -(-int((seq.lengths() >= 2).sum()) // size)

"""How well an LM alone ranks one held-out event a key, over the whole vocabulary."""

from __future__ import annotations

import numpy as np
import torch

from streamai.train.data import Sequences, batch
from streamai.train.model import EventLM


def leave_one_out(
    model: EventLM, seq: Sequences, back: int, *, seen: bool = False, size: int = 64
) -> dict[str, float]:
    """HR@10, NDCG@10 and MRR of each key's event `back` from its end (1 = last), given all before it.

    seen=False leaves out what the key has met before (target apart); ties count against the model; a target
    outside the vocabulary is a miss.
    """
    n = seq.lengths()
    use = np.flatnonzero(n > back)
    use = use[np.argsort(n[use], kind="stable")]
    length = n[use] - back
    return ranked(model, seq, seq.start[use], length, seen=seen, size=size)


def ranked(
    model, seq: Sequences, first: np.ndarray, length: np.ndarray, *, seen: bool = False, size: int = 64
) -> dict[str, float]:
    """The same for any places: the event at first + length, given the `length` events from `first` on, all of
    one key. A model with a window (a teacher) is given the newest of them; what was met is of all."""
    ranks = []
    model.eval()
    with torch.no_grad():
        for i in range(0, len(first), size):
            place = first[i : i + size], length[i : i + size]
            ranks.append(ranks_of(_scores(model, seq, *place), seq, *place, seen))
    return measures(np.concatenate(ranks) if ranks else np.zeros(0))


def measures(rank: np.ndarray) -> dict[str, float]:
    """HR@10, NDCG@10 and MRR of ranks f8[n], 0 = best."""
    hit = rank < 10
    return {
        "keys": len(rank),
        "hr@10": float(hit.mean()),
        "ndcg@10": float(np.where(hit, 1 / np.log2(rank + 2), 0).mean()),
        "mrr": float(np.mean(1 / (rank + 1))),
    }


def _scores(model, seq: Sequences, first: np.ndarray, length: np.ndarray) -> torch.Tensor:
    """f4[n, V]: what the model thinks of every item at each place."""
    kept = np.minimum(length, getattr(model.shape, "window", length.max(initial=1)))
    b = batch(seq, first + length - kept, kept, model.shape.vocabulary)
    q = model(b.token, b.kind, b.gap, b.side)
    return q[torch.arange(len(first)), b.length - 1] @ model.items().t() + model.bias


def ranks_of(
    scores: torch.Tensor, seq: Sequences, first: np.ndarray, length: np.ndarray, seen: bool
) -> np.ndarray:
    """How many items stand above or level with the target, one number a place; infinite outside V."""
    V, keys = scores.shape[1], np.arange(len(first))
    b = batch(seq, first, length, V)
    if not seen:
        mask = torch.zeros(len(keys), V + 64, dtype=torch.bool)
        real = torch.arange(b.token.shape[1]) < b.length[:, None]
        rows = torch.arange(len(keys))[:, None].expand_as(b.token)
        mask[rows[real], b.token[real]] = True
        mask = mask[:, :V]
    target = torch.from_numpy(seq.token[first + length].astype(np.int64))
    known = target < V
    own = scores.gather(1, target.clamp(max=V - 1)[:, None])
    if not seen:
        scores.masked_fill_(mask, -torch.inf)
    above = (scores >= own).sum(1).double()
    # the target counted itself, unless it was masked as seen
    itself = scores.gather(1, target.clamp(max=V - 1)[:, None])[:, 0] >= own[:, 0]
    return torch.where(known, above - itself.double(), torch.inf).numpy()

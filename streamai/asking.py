"""A step's requests, laid out for the kernel: what each row asks, in flat arrays (kernels/request.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamai import catalogue_filter
from streamai.catalogue import Catalogue
from streamai.events import Events, Request
from streamai.kernels import request as kernel

REMEMBERED = 64
"""Filters whose items are remembered; pages ask with the same few again and again."""


class Asking:
    """Puts the requests of a batch into the engine's scratch.

    top_k   what a request without k gets
    few     how many items that fulfil a filter are ranked one and all
    scratch the arrays "asking", "asked", "members", "filters" of kernels.context.Work
    """

    def __init__(
        self, catalogue: Catalogue | None, top_k: int, few: int, scratch: dict[str, np.ndarray]
    ) -> None:
        self.catalogue, self.top_k, self._few = catalogue, top_k, few
        self._asking, self._asked = scratch["asking"], scratch["asked"]
        self._members, self._filters = scratch["members"], scratch["filters"]
        if catalogue is not None:
            catalogue_filter.columns(catalogue)  # now, not while someone waits for an answer
        self._known: dict[tuple, np.ndarray] = {}  # filters -> u1[N], in the order of use

    def put(self, events: Events) -> Events:
        """The events of a step with requests, as many as there is room for: their rows and columns are
        copies, as the kernel writes the time (and the book) that a request is answered for."""
        n, used, masks = len(events), 0, {}
        self._asked[:n] = 0
        offsets = events.rows["offset"]
        for i, offset in enumerate(offsets.tolist()):
            asked = events.requests.get(offset)
            if asked is None:
                continue
            given, mask = self._given(asked)
            size = (0 if given is None else len(given)) + len(asked.exclude)
            slot = -1 if mask is None else masks.setdefault(asked.filters, len(masks))
            if used + size > len(self._members) or slot >= len(self._filters):
                n = i  # the rest comes with the next step
                break
            if slot == len(masks) - 1 >= 0 and mask is not None:
                self._filters[slot] = mask
            self._put(i, asked, given, used, slot)
            used += size
        self._asking[0] = self._asked[:n, kernel.IS].any()
        if not self._asking[0]:
            return events[:n]
        part = events[:n]
        return replace(part, rows=part.rows.copy(), columns=part.columns.copy())

    def none(self) -> None:
        """The step has no requests."""
        self._asking[0] = 0

    def _put(self, i: int, asked: Request, given: np.ndarray | None, at: int, slot: int) -> None:
        end = at + (0 if given is None else len(given))
        barred_end = end + len(asked.exclude)
        if given is not None:
            self._members[at:end] = given
        self._members[end:barred_end] = asked.exclude
        k = asked.k or self.top_k
        self._asked[i, : kernel.MASK + 1] = (1, k, given is not None, at, end, barred_end, slot)

    def _given(self, asked: Request) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(the only items to rank, or None; mask of the items that will do, or None). Few items that will do
        are ranked one and all, whatever the tier: a scan could miss those that the model does not know."""
        if not asked.filters or self.catalogue is None:
            return asked.candidates, None
        mask = self._mask(asked.filters)
        if asked.candidates is not None:
            return asked.candidates[mask[asked.candidates] != 0], None
        if np.count_nonzero(mask) <= self._few:
            return np.flatnonzero(mask).astype(np.int32), None
        return None, mask

    def _mask(self, filters: tuple) -> np.ndarray:
        mask = self._known.pop(filters, None)
        if mask is None:
            mask = catalogue_filter.fulfilled(filters, self.catalogue)
            if len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
        self._known[filters] = mask
        return mask

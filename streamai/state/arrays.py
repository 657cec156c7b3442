"""The arrays of kernels.context.State and Work, allocated once."""

from __future__ import annotations

import numpy as np

from streamai.kernels import context as c
from streamai.kernels import lm, request
from streamai.kernels.inputs import HEAD_INPUTS, NEWEST, RING_INPUTS, TEXT
from streamai.plan import Plan


def item_cells(item_plan: Plan) -> int:
    """8-byte cells of an item's row."""
    return 1 + item_plan.cells + (len(item_plan.names) + 1) // 2


def of_state(slab, counts, catalogue, item_plan: Plan, digest: int, online=None) -> dict[str, np.ndarray]:
    """State arrays by name: views of the slab's rows, item rows, counts, clock. All zero = nothing seen."""
    n_items = 0 if catalogue is None else len(catalogue.available)
    n = n_items if item_plan.names else 0
    # newest event time, state of the views, their outputs as of the newest event
    items = np.zeros((n, item_cells(item_plan)), "f8")
    clock = np.zeros(c.CLOCK_SIZE, "i8")
    clock[c.LEARN] = 1
    learnt = n_items if online is not None else 0
    return {
        "learnt_w": np.zeros(HEAD_INPUTS + 1, "f4"), "learnt_bias": np.zeros(learnt, "f4"),
        "served_w": np.zeros(HEAD_INPUTS + 1, "f4"), "served_bias": np.zeros(learnt, "f4"),
        "rates": np.array([0, 0] if online is None else [online.rate, online.bias_rate], "f4"),
        "flat_f8": slab.view("f8").reshape(-1), "rows_f8": slab.view("f8"),
        "rows_i8": slab.view("i8"), "rows_f4": slab.view("f4"),
        "rows_u1": slab.rows, "rows_u2": slab.view("u2"), "rows_u8": slab.view("u8"),
        "dirty": slab.dirty, "dirty_slots": slab.dirty_slots, "recent": slab.recent,
        "items_f8": items, "items_i8": items.view("i8"), "items_f4": items.view("f4"),
        "item_dirty": np.zeros(n, "u1"), "item_dirty_list": np.zeros(n, "i4"),
        "clock": clock, "digest": np.array([digest], "u8"),
        **counts.arrays(),
    }  # fmt: skip


def of_work(
    batch_max: int, tables: dict, plan: Plan, item_plan: Plan, width: int, linked: int
) -> dict[str, np.ndarray]:
    """Scratch and outputs by name; linked = most items that counts can score.

    `exclude` may be set by a driver: items never to recommend (evaluation).
    """
    n, d = len(tables["available"]), tables["item"].shape[1]
    shape = tables["shape"]
    features = len(plan.names) + len(item_plan.names)
    few = request.FEW if len(tables["ivf_start"]) == 0 else request.FEW_INDEXED
    candidates = max(int(shape[c.CANDIDATES]), request.CANDIDATES_MAX, few)
    hidden = max(len(tables["head_bu"]), len(tables["sig_b1"]))
    m = int(lm.hidden_units(tables["W2"], tables["Ws"], d)) if d else 0
    recommends = shape[c.MODE] == c.CLICKS
    ring = max(int(shape[c.RING]), int(shape[c.HIST]), 1)
    pool = 16 + 4 * int(shape[c.SCANNED])
    return {
        "slots": np.zeros(batch_max, "i4"), "gaps": np.zeros(batch_max, "i4"),
        "x": np.zeros(max(plan.scratch, item_plan.scratch, 1), "f8"),
        "lm": np.zeros(16 * d + 4 * m, "f4"), "octets": np.zeros(max(d, m), "u1"),
        "lm_state": np.zeros(int(shape[c.LM_FLOATS]), "f4"),
        "side": np.zeros(8, "i1"), "side_f4": np.zeros(8, "f4"),
        "q": np.zeros(d, "f4"),
        "hist": np.zeros(ring, "i4"),
        "acc": np.zeros(n, "f4"), "touched": np.zeros(linked, "i4"), "stamp": np.zeros(n, "i8"),
        "age": np.zeros(n, "i4"), "exclude": np.zeros(n, "u1"),
        "words": np.zeros(d, "i2"), "top": np.zeros(pool, "i4"), "top_s": np.zeros(pool, "f4"),
        "best": np.zeros(linked, "i4"), "best_s": np.zeros(linked, "f4"),
        "cand": np.zeros(candidates, "i4"), "cand_s": np.zeros(candidates, "f4"),
        "z": np.zeros((candidates, HEAD_INPUTS), "f4"),
        "found": np.zeros(2, "i8"), "user": np.zeros(hidden, "f4"),
        "own": np.zeros(ring, "i4"), "recent": np.zeros(ring, "f4"), "since": np.zeros(ring, "f4"),
        "span": np.zeros(ring, "f4"), "ring": np.zeros(RING_INPUTS, "f4"), "newest": np.zeros(NEWEST, "f4"),
        "zn": np.zeros(HEAD_INPUTS, "f4"), "text": np.zeros(TEXT, "f4"),
        **probing(len(tables["ivf_reach"]), int(shape[c.PROBED])),
        **asked(batch_max, n if recommends else 0, plan.cells),
        "w": np.zeros(HEAD_INPUTS, "f4"), "b": np.zeros(1, "f4"), "ring_hidden": np.zeros(n, "u1"),
        "factors": np.zeros(4), "newest_others": np.zeros(NEWEST, "f4"),
        "status": np.zeros(batch_max, "u1"), "features": np.zeros((batch_max, features), "f4"),
        "hidden": np.zeros((batch_max, d), "f4"),
        "items": np.full((batch_max, width if recommends else 0), -1, "i4"),
        "scores": np.zeros((batch_max, width), "f4"),
    }  # fmt: skip


def asked(batch_max: int, items: int, cells: int) -> dict[str, np.ndarray]:
    """What a step's requests ask, see kernels/request.py; untouched memory costs nothing."""
    windows = np.zeros(max(cells, 1), "f8")[:cells]
    return {
        "asking": np.zeros(1, "i8"), "asked": np.zeros((batch_max, request.ASKED), "i8"),
        "members": np.zeros(request.MEMBERS, "i4"), "filters": np.zeros((request.MASKS, items), "u1"),
        "cells_f8": windows, "cells_i8": windows.view("i8"),
    }  # fmt: skip


def probing(lists: int, probed: int) -> dict[str, np.ndarray]:
    """What a search of the index needs, see kernels/ivf.py."""
    room = 4 * lists + 16
    return {
        "probed": np.full(1, probed, "i8"), "probe": np.zeros(room, "i4"), "probe_s": np.zeros(room, "f4"),
        "probe_score": np.zeros(lists, "f4"), "probe_on": np.ones(lists, "u1"),
        "probe_off": np.zeros(lists, "u1"),
    }  # fmt: skip

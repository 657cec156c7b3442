"""The arrays of an engine, bundled: passing eighty arrays to a kernel costs more than the kernel.

A structref is made once and handed over at the cost of one pointer; its type depends on dtypes and
ranks only, so one compiled step serves every plan, model and catalogue. What is absent (no model, no
catalogue, no item views) is an array of length zero.
"""

from numba import njit, types
from numba.experimental import structref

from . import jit

# Tables.shape: sizes and places in a row; see streamai.layout.Layout
(
    KEY_CELLS, KEY_F, ITEM_F, PLAN_AT, BOOK_AT, RING_AT, RING, ENTRY, LM_AT, LM_FLOATS, MODE, SIDES, TOP_K,
    CANDIDATES, SCANNED, POPULAR, HIST, SCORED_ITEMS, EXCLUDE_SEEN, HAS_LM, HAS_HEAD, DISORDER, LOG_MAX,
    HORIZONS, HALVES, OWN, HEAD_OLD, CALIBRATED, ONLINE, REFRESH, HEAD_AT,
    LEARN_FROM, PROBED,
) = range(33)  # fmt: skip
SHAPE_SIZE = 40

# State.clock: the scalars that move with the stream
(
    WATERMARK, LANDMARK, DIRTY_KEYS, DIRTY_ITEMS, LOGGED, LATE_TOTAL, RESCALED, LEARN, STAMP, OVERFLOW,
    REFRESHED,
) = range(11)  # fmt: skip
CLOCK_SIZE = 16

# modes
PLAIN, CLICKS, MARKET = 0, 1, 2

TABLES = (
    "shape",  # i8[SHAPE_SIZE]
    "key_derived", "key_derived_p", "key_acc", "key_acc_p", "key_out", "key_out_p",
    "item_derived", "item_derived_p", "item_acc", "item_acc_p", "item_out", "item_out_p",
    "item", "bias", "known", "present", "unknown", "kind_emb", "gap_emb", "Wside", "Wg", "bg", "cw", "cb",
    "lam", "gap_w", "Wo", "W1", "W2", "Wq", "Ws", "Wc", "final_gain",
    "packed", "scale",  # int8 panels of the item table, by item or by place of the index
    "ivf_start", "ivf_item", "ivf_live", "ivf_bias", "ivf_reach",  # see ivf.py; none = all is scanned
    "ivf_middle", "ivf_middle_scale", "ivf_middle_bias",
    "available", "scannable", "price_z",  # scannable: available, and the model was trained on it
    "feat_mean", "feat_inv",
    "head_mean", "head_inv", "head_w", "head_b", "head_Wz", "head_W2", "head_bu", "head_Wu",
    "head_items", "text",  # weights of the item views; text vectors f4[N, 32], or none
    "sig_W1", "sig_b1", "sig_W2", "sig_b2", "sig_temp",
    # counts of the other partitions, see others.py; none = length 0
    "others_ids", "others_w", "others_pop", "others_fast", "others_top_pop", "others_top_fast",
    "others_landmark",  # i8[1]
)  # fmt: skip

STATE = (
    "flat_f8", "rows_f8", "rows_i8", "rows_f4", "rows_u1", "rows_u2", "rows_u8",  # views of one slab
    "dirty", "dirty_slots", "recent",
    # an item's row: newest event time, state of the views, their features as of that event
    "items_f8", "items_i8", "items_f4", "item_dirty", "item_dirty_list",
    "ids", "w", "pop", "fast", "norm", "top_pop", "top_fast",  # counts, see kernels/counts.py
    "log",  # counts.LOG[LOG_MAX]
    "clock", "digest",  # i8[CLOCK_SIZE], u8[1]: the model's
    "learnt_w", "learnt_bias", "served_w", "served_bias", "rates",  # see kernels/online.py
    "tau",  # f8[2]: decay of counts and of fast popularity, ns
    "joint",  # f4[N]: norm with the other partitions' popularity; derived, see others.py
)  # fmt: skip

WORK = (
    "slots", "gaps", "x", "lm", "octets", "lm_state", "side", "side_f4", "q", "hist",
    "acc", "touched", "stamp", "age", "exclude",
    "words", "top", "top_s", "best", "best_s", "cand", "cand_s", "z", "found", "user",
    "own", "recent", "since", "span", "ring", "newest", "zn", "text",  # see inputs.py
    "asking", "asked", "members", "filters", "cells_f8", "cells_i8",  # see request.py
    "w", "b", "ring_hidden", "factors", "newest_others",
    "probed", "probe", "probe_s", "probe_score", "probe_on", "probe_off",  # see ivf.py
    "status", "features", "hidden", "items", "scores",
)  # fmt: skip


class _Arrays(types.StructRef):
    def preprocess_fields(self, fields):
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


@structref.register
class TablesType(_Arrays):
    pass


@structref.register
class StateType(_Arrays):
    pass


@structref.register
class WorkType(_Arrays):
    pass


class Tables(structref.StructRefProxy):
    """What does not change while a model and a catalogue are in use."""


class State(structref.StructRefProxy):
    """What is checkpointed."""


class Work(structref.StructRefProxy):
    """Scratch and outputs of the last step."""


structref.define_proxy(Tables, TablesType, TABLES)
structref.define_proxy(State, StateType, STATE)
structref.define_proxy(Work, WorkType, WORK)


@njit(**jit)
def _tables(arrays):
    return Tables(*arrays)


@njit(**jit)
def _state(arrays):
    return State(*arrays)


@njit(**jit)
def _work(arrays):
    return Work(*arrays)


def bundle(build, names, arrays):
    """A structref of the named arrays; KeyError for one that is missing."""
    return build(tuple(arrays[name] for name in names))


def tables(arrays):
    """Tables of a dict of arrays by the names in TABLES."""
    return bundle(_tables, TABLES, arrays)


def state(arrays):
    """State of a dict of arrays by the names in STATE."""
    return bundle(_state, STATE, arrays)


def work(arrays):
    """Work of a dict of arrays by the names in WORK."""
    return bundle(_work, WORK, arrays)

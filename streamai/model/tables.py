"""The arrays of kernels.context.Tables: plans, model and catalogue, brought into one order.

A model knows items by id, the stream by catalogue index: the item table is gathered into catalogue order
here, once. Items that the model was not trained on have known = 0: the LM takes them as one of 64 hashed
unknown tokens and never finds them; counts and popularity can.
"""

from __future__ import annotations

import numpy as np

from streamai.catalogue import Catalogue
from streamai.errors import ModelError
from streamai.events import MARKET
from streamai.flow import Flow
from streamai.kernels import context as c
from streamai.kernels import lm, quant
from streamai.kernels.inputs import HEAD_INPUTS, TEXT
from streamai.kernels.lm import UNKNOWN, matvec
from streamai.kernels.maths import ordered_dot
from streamai.layout import BOOK_CELLS, HEADER_CELLS, Layout
from streamai.model import index
from streamai.model.weights import Weights, number, read, shaped
from streamai.plan import Plan

SCANNED = 64
"""Best items of the catalogue scan that are scored exactly."""
POPULAR = 24
"""Recently popular items among the candidates."""
OWN = 64
"""Most items of the key's own ring among them, beside those that come in anyhow."""
OF_MODEL = ("lm_floats", "halves", "head_floats")
"""Parts of a row's layout that another model may have otherwise: made anew from the ring."""

LM = ("unknown", *lm.ARRAYS)
MATRICES = ("Wg", "Wo", "W1", "W2")
HEAD = ("head_mean", "head_inv", "head_w", "head_b", "head_Wz", "head_W2", "head_bu", "head_Wu",
        "head_items")  # fmt: skip
SIGNAL = ("sig_W1", "sig_b1", "sig_W2", "sig_b2", "sig_temp")
_RANKS = {
    "Wq": 2, "Ws": 2, "Wc": 2,
    "item": 2, "unknown": 2, "kind_emb": 2, "gap_emb": 2, "Wside": 2, "Wg": 3, "bg": 2, "cw": 3, "cb": 2,
    "lam": 2, "gap_w": 2, "Wo": 3, "W1": 3, "W2": 3, "head_Wz": 2, "head_Wu": 2, "sig_W1": 2, "sig_W2": 2,
}  # fmt: skip


def mode_of(flow: Flow, weights: Weights | None) -> int:
    """PLAIN, CLICKS or MARKET: what the step does beside features."""
    if flow.catalogue is not None:
        return c.CLICKS
    return c.MARKET if weights is not None and weights.kind == "market" else c.PLAIN


def layout_of(flow: Flow, plan: Plan, weights: Weights | None) -> Layout:
    """Where things lie in a row of this flow."""
    market = mode_of(flow, weights) == c.MARKET
    floats, halves = 0, False
    if weights is not None:
        floats = number(weights, "d", 16, 1024) * (4 * number(weights, "layers", 1, 64) + 1)
        halves = weights.halves
    head = 0
    if flow.online is not None:
        if weights is None or len(weights.arrays.get("head_w", ())) != HEAD_INPUTS:
            raise ModelError(
                f"flow {flow.name!r} learns online, and {getattr(weights, 'path', 'it')} has no ranking head "
                f"of {HEAD_INPUTS} inputs to learn on; train one, or leave online= out"
            )
        head = len(weights.arrays["head_bu"])
    return Layout(plan.cells, flow.ring, 16 if market else 8, floats, halves, head)


def check(flow: Flow, weights: Weights, plan: str) -> None:
    """A model that does not fit the flow is refused before any state is touched: kernels check no bounds.

    plan: digest of the flow's features; a head that was trained on others would be served something else.
    """
    wanted = "clicks" if flow.catalogue is not None else "market"
    if weights.kind != wanted and flow.scorer is None:
        raise ModelError(
            f"{weights.path} is a model of {weights.kind}; flow {flow.name!r} needs one of {wanted}. "
            "Train it with `streamai train`, or give the flow another model."
        )
    trained = weights.header.get("plan")
    if trained and trained != plan and flow.scorer is None:
        raise ModelError(
            f"the head of {weights.path} was trained on the features of plan {trained}; the views of flow "
            f"{flow.name!r} are plan {plan}. Train it again with `streamai train`, or use those views."
        )
    if weights.kind == "market":
        _check_market(flow, weights)


def _check_market(flow: Flow, weights: Weights) -> None:
    """The columns that the tokens are made of, and the horizons that the head was trained for."""
    columns = [column.name for column in MARKET.columns]
    has = [column.name for column in flow.schema.columns]
    if has[: len(columns)] != columns:
        raise ModelError(
            f"{weights.path} reads events with the columns {columns}; {flow.schema.name!r} has {has}. Use "
            "events.MARKET, or a schema that begins with its columns."
        )
    horizons = weights.header.get("horizons")
    if "sig_temp" in weights.arrays and flow.scorer is None and horizons != list(flow.horizons):
        raise ModelError(
            f"{weights.path} forecasts {horizons}, flow {flow.name!r} wants {list(flow.horizons)}. Give the "
            "flow the model's horizons, or train it again with `streamai train`."
        )


def _trained_until(weights: Weights | None) -> int:
    """Event time, ns, from which on the model has learnt nothing; 0 where the file does not say."""
    metrics = {} if weights is None else weights.header.get("metrics", {})
    until = metrics.get("fitted_until_ns", 0) if isinstance(metrics, dict) else 0
    return until if isinstance(until, int) else 0


def lm_arrays(weights: Weights | None) -> dict[str, np.ndarray]:
    """`item`, `bias` and everything in LM; empty without a model. weights.read has checked the shapes."""
    out = {n: np.zeros((0,) * _RANKS.get(n, 1), "f4") for n in ("item", "bias", *LM)}
    out["Wq"], out["Wc"] = np.zeros((0, 0), "i1"), np.zeros((0, 0), "i4")
    if weights is None:
        return out
    given = {n: weights.arrays[n] for n in ("bias", *LM) if n in weights.arrays}
    out |= {n: np.ascontiguousarray(a, "f4") for n, a in given.items()}
    out["item"] = weights.items()
    if weights.int8:
        out |= packed_matrices(weights)
    return out


def packed_matrices(weights: Weights) -> dict[str, np.ndarray]:
    """Wq, Ws, Wc of an int8 model (see `kernels.lm` and `kernels.quant`)."""
    matrices = [weights.arrays[f"{n}_q"] for n in MATRICES]
    layers = len(matrices[0])
    Wq = np.zeros((layers, sum(a[0].size for a in matrices)), "i1")
    Wc = np.zeros((layers, sum(a.shape[2] for a in matrices)), "i4")
    for k in range(layers):
        at = column = 0
        for a in matrices:
            n, m = a.shape[1:]
            quant.pack(np.ascontiguousarray(a[k]), Wq[k, at : at + n * m], Wc[k, column : column + m])
            at, column = at + n * m, column + m
    Ws = np.concatenate([weights.arrays[f"{n}_s"] for n in MATRICES], 1)
    return {"Wq": Wq, "Ws": np.ascontiguousarray(Ws, "f4"), "Wc": Wc}


def _in_catalogue_order(arrays: dict, weights: Weights, catalogue: Catalogue) -> np.ndarray:
    """Gathers item and bias by catalogue index; returns known u1[cap].

    An item that the model was not trained on gets the row of its hashed unknown token, as in training.
    """
    cap, d = len(catalogue.available), arrays["item"].shape[1]
    item, bias, known = np.zeros((cap, d), "f4"), np.zeros(cap, "f4"), np.zeros(cap, "u1")
    row = {item_id: v for v, item_id in enumerate(weights.vocabulary)}
    pairs = [(i, row[item_id]) for i, item_id in enumerate(catalogue.ids) if item_id in row]
    if pairs:
        here, there = np.array(pairs).T
        item[here], bias[here], known[here] = arrays["item"][there], arrays["bias"][there], 1
    for i in np.flatnonzero(known[: catalogue.n] == 0):
        item[i] = arrays["unknown"][Catalogue.token_hash(catalogue.ids[i]) & (UNKNOWN - 1)]
    if "text_P" in weights.arrays and catalogue.vectors is not None:
        _by_words(weights, catalogue, item, bias, known)
    arrays["item"], arrays["bias"] = item, bias
    return known


def _by_words(weights: Weights, catalogue: Catalogue, item, bias, known) -> None:
    """Rows of items that the model was not trained on, from their text; they are then known."""
    P, p, vectors = weights.arrays["text_P"], weights.arrays["text_p"], catalogue.vectors
    if vectors.shape[1] != len(P):
        raise ModelError(
            f"{weights.path}: trained on text vectors of {len(P)} numbers, the catalogue has "
            f"{vectors.shape[1]}. Make both with the same `streamai items`."
        )
    for i in np.flatnonzero((known[: catalogue.n] == 0) & vectors.any(1)):
        matvec(vectors[i], P, item[i])
        bias[i], known[i] = ordered_dot(vectors[i], p) + p[-1], 1


def _heads(weights: Weights | None) -> dict[str, np.ndarray]:
    found = {} if weights is None else weights.arrays
    names = ("feat_mean", "feat_inv", *HEAD, *SIGNAL)
    out = {
        n: np.ascontiguousarray(found[n], "f4") if n in found else np.zeros((0,) * _RANKS.get(n, 1), "f4")
        for n in names
    }
    if 0 < len(out["head_w"]) < HEAD_INPUTS:  # of a file with eight inputs: the others weigh nothing
        for name in ("head_mean", "head_inv", "head_w", "head_Wz"):
            missing = HEAD_INPUTS - len(out[name])
            out[name] = np.concatenate([out[name], np.zeros((missing, *out[name].shape[1:]), "f4")])
    return out


def _text(weights: Weights | None, catalogue: Catalogue | None) -> np.ndarray:
    """Text vectors of length 1 by catalogue index, zeros where there is none; no rows without any.

    From the file's own array by vocabulary, or from the catalogue's vectors by the file's axes.
    """
    found = {} if weights is None or catalogue is None else weights.arrays
    out = np.zeros((0 if catalogue is None else len(catalogue.available), TEXT), "f4")
    if "text" in found:
        rows = shaped(weights, "text", len(weights.vocabulary), TEXT)
        row = {item_id: v for v, item_id in enumerate(weights.vocabulary)}
        for i, item_id in enumerate(catalogue.ids):
            if item_id in row:
                out[i] = rows[row[item_id]]
    elif "text_pca" in found and found["text_pca"].shape[1] == TEXT and catalogue.vectors is not None:
        for i in range(catalogue.n):
            matvec(catalogue.vectors[i], found["text_pca"], out[i])
    else:
        return out[:0]
    for v in out:
        size = float(np.sqrt(ordered_dot(v, v)))
        v /= np.float32(max(size, 1e-9))
    return out


def _price_z(catalogue: Catalogue | None) -> np.ndarray:
    """Standard score of the log price; 0 where there is none."""
    if catalogue is None:
        return np.zeros(0, "f4")
    price = np.where(catalogue.price > 0, catalogue.price, np.nan).astype("f8")
    known = np.isfinite(price)
    if known.sum() < 2:
        return np.zeros(len(price), "f4")
    logs = np.log(price[known])
    z = np.zeros(len(price), "f4")
    z[known] = (logs - logs.mean()) / max(logs.std(), 1e-6)
    return z


def _check_features(flow: Flow, weights: Weights | None, arrays: dict, features: int) -> None:
    has = len(arrays["feat_mean"])
    if weights is not None and flow.scorer is None and has not in (0, features):  # else no head is run
        raise ModelError(
            f"{weights.path} was trained on {has} features, the views of flow {flow.name!r} give {features}. "
            "Train it again with `streamai train`, or use the views it was trained with."
        )


def items_of(flow: Flow) -> tuple[dict, Weights]:
    """(item table in catalogue order and the LM's arrays, model) of a flow that has both."""
    model = read(flow.model)
    catalogue = flow.catalogue if isinstance(flow.catalogue, Catalogue) else Catalogue.load(flow.catalogue)
    arrays = lm_arrays(model)
    known = _in_catalogue_order(arrays, model, catalogue)
    arrays["known"], arrays["present"] = known, np.ones(len(known), "u1")
    arrays["scannable"] = catalogue.available & known
    return arrays, model


def arrays_of(flow: Flow, plan: Plan, item_plan: Plan, catalogue, weights: Weights | None) -> dict:
    """Everything in Tables by name, except `shape`."""
    arrays = {}
    for prefix, p in (("key", plan), ("item", item_plan)):
        for part in ("derived", "acc", "out"):
            arrays[f"{prefix}_{part}"] = getattr(p, part)
            arrays[f"{prefix}_{part}_p"] = getattr(p, f"{part}_p")
    arrays |= lm_arrays(weights) | _heads(weights)
    if weights is not None and catalogue is not None:
        known = _in_catalogue_order(arrays, weights, catalogue)
    elif weights is not None:
        known = np.ones(len(arrays["item"]), "u1")
    else:
        known = np.zeros(0 if catalogue is None else len(catalogue.available), "u1")
    _check_features(flow, weights, arrays, len(plan.names) + len(item_plan.names))
    n = len(catalogue.available) if catalogue is not None else 0
    arrays["known"], arrays["present"] = known, np.ones(len(known), "u1")
    arrays["available"] = np.zeros(0, "u1") if catalogue is None else catalogue.available.copy()
    arrays["scannable"] = arrays["available"] & known if catalogue is not None else arrays["available"]
    arrays |= index.of_table(arrays, weights, n, flow.scan_max)
    arrays["price_z"] = _price_z(catalogue)
    arrays["text"] = _text(weights, catalogue)
    return arrays


def shape_of(
    flow: Flow, plan: Plan, item_plan: Plan, layout: Layout, arrays: dict, weights, sizes: dict
) -> np.ndarray:
    """The integers of Tables.shape."""
    shape = np.zeros(c.SHAPE_SIZE, "i8")
    market = mode_of(flow, weights) == c.MARKET
    values = {
        c.KEY_CELLS: plan.cells, c.KEY_F: len(plan.names), c.ITEM_F: len(item_plan.names),
        c.PLAN_AT: layout.plan_at, c.BOOK_AT: HEADER_CELLS, c.RING_AT: 8 * layout.ring_at,
        c.RING: layout.ring, c.ENTRY: layout.entry_bytes,
        c.LM_AT: 2 * layout.lm_at, c.LM_FLOATS: layout.lm_floats, c.HALVES: int(layout.halves),
        c.HEAD_AT: 2 * layout.head_at, c.ONLINE: int(flow.online is not None),
        c.REFRESH: 0 if flow.online is None else flow.online.refresh_ns,
        c.LEARN_FROM: _trained_until(weights), c.PROBED: int(arrays["ivf_probed"][0]),
        c.MODE: mode_of(flow, weights),
        c.SIDES: 8 if market else 0, c.TOP_K: flow.top_k, c.CANDIDATES: flow.candidates, c.SCANNED: SCANNED,
        c.POPULAR: POPULAR, c.HIST: flow.counts.window, c.SCORED_ITEMS: flow.counts.scored,
        c.EXCLUDE_SEEN: int(flow.exclude_seen), c.HAS_LM: int(weights is not None),
        c.HAS_HEAD: int(len(arrays["head_w"]) > 0), c.OWN: OWN,
        c.HEAD_OLD: int(weights is not None and len(weights.arrays.get("head_w", ())) == 8),
        c.CALIBRATED: int(weights is not None and bool(weights.header.get("calibrated"))), **sizes,
    }  # fmt: skip
    assert BOOK_CELLS == 8
    for at, value in values.items():
        shape[at] = value
    return shape

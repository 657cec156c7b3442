"""Model files: named arrays behind a JSON header, memory-mapped; nothing in a file is ever executed.

    b"STREAMAI"   u4 version   u8 bytes of the header   header (JSON, UTF-8)   arrays, each 64-byte aligned

Header: kind ("clicks" or "market"), d, layers, mlp, side, heads, horizons, plan (digest of the features
that the head was trained on), metrics, arrays {name: {dtype, shape, offset}}; offsets count from the
first 64-byte boundary after the header. All little-endian. The item ids of a click model's vocabulary
are two arrays, their UTF-8 bytes joined and where each begins.

The other arrays, f4 (V rows, width d, L layers, mlp m, S side features, F features, Hd hidden units):
LM, see `kernels/lm.py`: item[V, d] bias[V] unknown[64, d] kind_emb[8, d] gap_emb[64, d] Wside[S, d]
Wg[L, d, 4d] bg[L, 4d] cw[L, 4, d] cb[L, d] lam[L, d] gap_w[L, d] Wo[L, d, d] W1[L, d, 2m] W2[L, m, d]
final_gain[d]; features feat_mean[F] feat_inv[F]; ranking head, see `kernels/rank.py`: head_mean[16]
head_inv[16] head_w[16] head_b[1] head_Wz[16, Hd] head_W2[Hd] head_bu[Hd] head_Wu[d + F + 3, Hd]
head_items[item F], in older files 8 for 16 and nothing for the 3 and head_items; text[V, 32]; signal head of
H horizons: sig_W1[d + F (+ S), Hd] sig_b1[Hd] sig_W2[Hd, 3H] sig_b2[3H] sig_temp[H];
text of items (T numbers each): text_P[T, d] text_p[T + 1] text_pca[T, 32].

Header "int8": true = each of Wg, Wo, W1, W2 is there as Wg_q i1[L, in, out] with a step a column Wg_s
f4[L, out], and item as item_q i1[V, d] with a step a row item_s f4[V]: a weight is q * s. Header "rank": r =
item is the product of item_u f4[V, r] (or item_u_q, item_u_s) and item_p f4[r, d]. Header "state": "f2" =
the LM state of a row is kept in half precision.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamai.errors import ModelError
from streamai.kernels.inputs import HEAD_INPUTS, RING_INPUTS

MAGIC, VERSION = b"STREAMAI", 2
READS = (1, 2)
"""Version 1 has no int8, rank or state."""
KINDS = ("clicks", "market")
_START = struct.Struct("<8sIQ")
_ALIGN = 64
_HEADER_BYTES_MAX = 1 << 24
_DTYPES = {"<f4", "|i1", "|u1", "<i4", "<i8"}
LANES = 16
"""Widths that the kernels walk are multiples of this."""
SIDES = {"clicks": 2, "market": 8}
"""Most side features an event of a kind can have: what fits into its entry of the ring."""
_OLD_INPUTS = 8
"""Inputs of a candidate in the heads of the first files."""
_HIDDEN = {"head_Wz": 1, "head_W2": 0, "head_bu": 0, "head_Wu": 1, "sig_W1": 1, "sig_b1": 0, "sig_W2": 0}
"""Arrays of a head with the axis of its hidden units."""
_IDS, _IDS_AT = "vocabulary_bytes", "vocabulary_at"


@dataclass(frozen=True)
class Weights:
    """A model file as read.

    path     where it was
    digest   16 hex digits over the whole file; stands in every output scored with it
    header   dict, see the module's head, with `vocabulary`: list of item ids (empty for markets)
    arrays   name -> array, C order; private pages of the mapped file
    """

    path: str
    digest: str
    header: dict
    arrays: dict[str, np.ndarray]

    @property
    def kind(self) -> str:
        return self.header["kind"]

    @property
    def vocabulary(self) -> list[str]:
        return self.header["vocabulary"]

    @property
    def int8(self) -> bool:
        """Whether matrices and item table are in 8 bits."""
        return bool(self.header.get("int8", False))

    @property
    def halves(self) -> bool:
        """Whether the LM state of a row is in half precision."""
        return self.header.get("state", "f4") == "f2"

    def matrix(self, name: str) -> np.ndarray:
        """One of Wg, Wo, W1, W2 as f4[L, in, out], whatever form it is stored in."""
        if not self.int8:
            return self.arrays[name]
        return self.arrays[f"{name}_q"] * self.arrays[f"{name}_s"][:, None, :]

    def items(self) -> np.ndarray:
        """The item table f4[V, d], whatever form it is stored in. Always the same bits."""
        rank = self.header.get("rank", 0)
        name = "item_u" if rank else "item"
        if self.int8:
            rows = self.arrays[f"{name}_q"] * self.arrays[f"{name}_s"][:, None]
        else:
            rows = self.arrays[name]
        if not rank:
            return rows
        out = np.zeros((len(rows), self.header["d"]), np.float32)
        for k in range(rank):  # one rounding a term, in the order of k
            out += rows[:, k : k + 1] * self.arrays["item_p"][k]
        return out


def _aligned(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


def write(path: str | Path, header: Mapping, arrays: Mapping[str, np.ndarray]) -> str:
    """Write a model file, whole or not at all; returns its digest.

    header needs `kind`; `vocabulary` (item ids) is packed into arrays. The same input gives the same bytes.
    """
    path, header, arrays = Path(path), dict(header), dict(arrays)
    if header.get("kind") not in KINDS:
        raise ModelError(f"{path}: kind is {header.get('kind')!r}; expected one of {KINDS}")
    ids = [str(s).encode() for s in header.pop("vocabulary", ())]
    if ids:
        arrays[_IDS] = np.frombuffer(b"".join(ids) or b"\0", np.uint8)
        arrays[_IDS_AT] = np.cumsum([0] + [len(b) for b in ids]).astype("<i8")
    table, chunks, offset = {}, [], 0
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        dtype = a.dtype.newbyteorder("<").str
        if dtype not in _DTYPES:
            raise ModelError(f"{path}: array {name} is {a.dtype}; a file holds {sorted(_DTYPES)}")
        raw = a.astype(dtype, copy=False).tobytes()
        table[name] = {"dtype": dtype, "shape": list(arrays[name].shape), "offset": offset}
        chunks += [raw, bytes(_aligned(len(raw)) - len(raw))]
        offset += _aligned(len(raw))
    header["arrays"] = table
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    head = _START.pack(MAGIC, VERSION, len(text)) + text
    content = b"".join([head, bytes(_aligned(len(head)) - len(head)), *chunks])
    draft = path.with_name(path.name + ".draft")
    with draft.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    draft.replace(path)
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def read(path: str | Path) -> Weights:
    """Read a model file. ModelError says what is damaged and where; every length and shape is checked.

    The hidden units of the heads are padded with idle ones to a multiple of 16.
    """
    path = Path(path)
    try:
        # copy on write: pages are shared until touched, and numba sees an ordinary writable array
        data = np.memmap(path, np.uint8, "c").view(np.ndarray)
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: cannot be read as a model file ({e}); export it again") from e
    header, start = _header(path, data)
    arrays = {}
    for name, entry in _entries(path, header).items():
        arrays[name] = _array(path, data, start, name, entry)
    header["vocabulary"] = _vocabulary(path, arrays.pop(_IDS, None), arrays.pop(_IDS_AT, None))
    weights = Weights(str(path), hashlib.blake2b(data, digest_size=8).hexdigest(), header, arrays)
    _check_lm(weights)
    _check_text(weights)
    features = _check_features(weights)
    if "head_W2" in arrays:
        _check_ranking(weights, features)
    if weights.kind == "market":
        _check_signal(weights, features)
    for name, axis in _HIDDEN.items():
        if name in arrays:
            arrays[name] = _padded(arrays[name], axis)
    return weights


def _header(path: Path, data: np.ndarray) -> tuple[dict, int]:
    if len(data) < _START.size:
        raise ModelError(f"{path}: {len(data)} bytes; expected a model file of at least {_START.size}")
    magic, version, size = _START.unpack(data[: _START.size].tobytes())
    if magic != MAGIC:
        raise ModelError(f"{path}: begins with {magic!r}; a model file begins with {MAGIC!r}")
    if version not in READS:
        raise ModelError(f"{path}: format version {version}; this streamai reads {READS}; export it again")
    if size > min(len(data) - _START.size, _HEADER_BYTES_MAX):
        raise ModelError(f"{path}: header of {size} bytes in a file of {len(data)}; it is damaged")
    try:
        header = json.loads(data[_START.size : _START.size + size].tobytes())
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: the header is not JSON ({e}); the file is damaged") from e
    if not isinstance(header, dict) or header.get("kind") not in KINDS:
        raise ModelError(f"{path}: the header names no kind; expected one of {KINDS}")
    return header, _aligned(_START.size + size)


def _entries(path: Path, header: dict) -> dict:
    entries = header.pop("arrays", None)
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise ModelError(f"{path}: the header has no table of arrays; the file is damaged")
    return entries


def _array(path: Path, data: np.ndarray, start: int, name: str, entry: dict) -> np.ndarray:
    dtype, shape, offset = entry.get("dtype"), entry.get("shape"), entry.get("offset")
    whole = lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0  # noqa: E731
    good = isinstance(dtype, str) and dtype in _DTYPES and isinstance(shape, list) and len(shape) <= 4
    if not (good and all(map(whole, shape)) and whole(offset) and offset % _ALIGN == 0):
        raise ModelError(f"{path}: array {name} is described as {entry}; the file is damaged")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if start + offset + size > len(data):
        raise ModelError(f"{path}: array {name} ends beyond the file's {len(data)} bytes; it was cut short")
    a = data[start + offset : start + offset + size].view(dtype).reshape(shape)
    if dtype == "<f4" and not np.isfinite(a).all():
        raise ModelError(f"{path}: array {name} holds NaN or infinity; train or export it again")
    return a


def _vocabulary(path: Path, raw: np.ndarray | None, at: np.ndarray | None) -> list[str]:
    if raw is None and at is None:
        return []
    good = raw is not None and at is not None and raw.ndim == at.ndim == 1 and len(at) and at[0] == 0
    if not good or (np.diff(at) < 0).any() or at[-1] > len(raw):
        raise ModelError(f"{path}: the vocabulary does not fit its index; the file is damaged")
    text, ends = raw.tobytes(), at.tolist()
    try:
        return [text[a:b].decode() for a, b in zip(ends, ends[1:])]
    except UnicodeDecodeError as e:
        raise ModelError(f"{path}: the vocabulary is not UTF-8 ({e}); the file is damaged") from e


def shaped(weights: Weights, name: str, *shape: int | None, dtype: str = "f4") -> np.ndarray:
    """An array of the file with this shape (None = any size); ModelError when it is not so."""
    a = weights.arrays.get(name)
    wanted = f"{dtype}[{', '.join('any' if n is None else str(n) for n in shape)}]"
    if a is None:
        known = ", ".join(sorted(weights.arrays))
        raise ModelError(f"{weights.path}: no array {name}, {wanted}; it has {known}")
    fits = a.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, a.shape))
    if a.dtype != np.dtype(dtype) or not fits:
        raise ModelError(f"{weights.path}: array {name} is {a.dtype}{list(a.shape)}; expected {wanted}")
    return a


def number(weights: Weights, name: str, least: int, most: int, default: int | None = None) -> int:
    """A whole number of the header within bounds; ModelError when it is not."""
    value = weights.header.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ModelError(f"{weights.path}: header {name} is {value!r}; expected {least} to {most}")
    return value


def _check_lm(weights: Weights) -> None:
    """The kernels check no bounds: every shape has to follow from the header."""
    d, layers = number(weights, "d", 16, 1024), number(weights, "layers", 1, 64)
    m = number(weights, "mlp", 16, 8192)
    sides = number(weights, "side", 0, SIDES[weights.kind], default=0)
    if d % LANES or m % LANES:
        raise ModelError(f"{weights.path}: d is {d} and mlp {m}; the kernels need multiples of {LANES}")
    _check_flags(weights)
    shapes = {
        "unknown": (64, d), "kind_emb": (8, d), "gap_emb": (64, d), "Wside": (sides, d),
        "bg": (layers, 4 * d), "cw": (layers, 4, d), "cb": (layers, d),
        "lam": (layers, d), "gap_w": (layers, d), "final_gain": (d,),
    }  # fmt: skip
    for name, shape in shapes.items():
        shaped(weights, name, *shape)
    for name, (n, columns) in {"Wg": (d, 4 * d), "Wo": (d, d), "W1": (d, 2 * m), "W2": (m, d)}.items():
        if weights.int8:
            shaped(weights, f"{name}_q", layers, n, columns, dtype="i1")
            _steps(weights, f"{name}_s", layers, columns)
        else:
            shaped(weights, name, layers, n, columns)
    rows = _check_item(weights, d)
    shaped(weights, "bias", rows)
    ids = len(weights.vocabulary)
    if not rows or (weights.kind == "clicks" and ids != rows):
        raise ModelError(f"{weights.path}: {ids} item ids for {rows} rows of the item table")
    for name in ("lam", "gap_w"):
        if (weights.arrays[name] < 0).any():
            raise ModelError(f"{weights.path}: {name} holds a negative value; a decay would grow")


def _check_flags(weights: Weights) -> None:
    """What a kernel branches on, and only what it knows."""
    header, path = weights.header, weights.path
    if not isinstance(header.get("int8", False), bool):
        raise ModelError(f"{path}: header int8 is {header['int8']!r}; expected true or false")
    if header.get("state", "f4") not in ("f4", "f2"):
        raise ModelError(f"{path}: header state is {header['state']!r}; expected 'f4' or 'f2'")


def _check_item(weights: Weights, d: int) -> int:
    """Rows of the item table, in whichever of its four forms."""
    rank = number(weights, "rank", 0, d, default=0)
    name, width = ("item_u", rank) if rank else ("item", d)
    if rank:
        shaped(weights, "item_p", rank, d)
    if not weights.int8:
        return len(shaped(weights, name, None, width))
    rows = len(shaped(weights, f"{name}_q", None, width, dtype="i1"))
    _steps(weights, f"{name}_s", rows)
    return rows


def _steps(weights: Weights, name: str, *shape: int) -> None:
    if (shaped(weights, name, *shape) < 0).any():
        raise ModelError(f"{weights.path}: {name} holds a negative step; the file is damaged")


def _check_features(weights: Weights) -> int:
    """How many features the head was trained on (0 without any)."""
    if "feat_mean" not in weights.arrays and "feat_inv" not in weights.arrays:
        return 0
    features = len(shaped(weights, "feat_mean", None))
    shaped(weights, "feat_inv", features)
    return features


def _check_text(weights: Weights) -> None:
    """How to make an item of its words alone: all three arrays or none."""
    if any(name.startswith("text_") for name in weights.arrays):
        rows = len(shaped(weights, "text_P", None, weights.header["d"]))
        if not rows or rows % 4:
            raise ModelError(f"{weights.path}: text_P has {rows} rows; the kernels need a multiple of 4")
        shaped(weights, "text_p", rows + 1)
        shaped(weights, "text_pca", rows, None)


def _check_ranking(weights: Weights, features: int) -> None:
    hidden, inputs = len(shaped(weights, "head_W2", None)), weights.header["d"] + features
    z = HEAD_INPUTS if len(shaped(weights, "head_w", None)) != _OLD_INPUTS else _OLD_INPUTS
    inputs += RING_INPUTS if z == HEAD_INPUTS else 0
    shapes = {"mean": (z,), "inv": (z,), "w": (z,), "b": (1,), "Wz": (z, hidden), "bu": (hidden,),
              "Wu": (inputs, hidden)}  # fmt: skip
    for name, shape in shapes.items():
        shaped(weights, f"head_{name}", *shape)
    if "head_items" in weights.arrays and len(shaped(weights, "head_items", None)) > features:
        raise ModelError(f"{weights.path}: head_items weighs more item features than there are features")


def _check_signal(weights: Weights, features: int) -> None:
    """A market model may have no signal head; then it has none of its arrays."""
    if not any(name.startswith("sig_") for name in weights.arrays):
        return
    horizons = weights.header.get("horizons")
    if not isinstance(horizons, list) or not horizons or not all(isinstance(h, str) for h in horizons):
        raise ModelError(f"{weights.path}: header horizons is {horizons!r}; expected a list of names")
    hidden, outs = len(shaped(weights, "sig_b1", None)), 3 * len(horizons)
    inputs, sides = weights.header["d"] + features, len(weights.arrays["Wside"])
    rows = len(shaped(weights, "sig_W1", None, hidden))
    if rows not in (inputs, inputs + sides):
        raise ModelError(
            f"{weights.path}: sig_W1 has {rows} rows; expected {inputs} (d and features) "
            f"or {inputs + sides} (and side features)"
        )
    shaped(weights, "sig_W2", hidden, outs)
    shaped(weights, "sig_b2", outs)
    if (shaped(weights, "sig_temp", len(horizons)) <= 0).any():
        raise ModelError(f"{weights.path}: sig_temp holds a temperature that is not positive")


def _padded(a: np.ndarray, axis: int) -> np.ndarray:
    """Zeros behind an axis up to a whole number of lanes: hidden units that do nothing."""
    short = -a.shape[axis] % LANES
    if not short:
        return a
    return np.pad(a, [(0, short if i == axis else 0) for i in range(a.ndim)])


def check_agreement(
    name: str, got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], tol: float, mean: bool = False
) -> float:
    """Greatest |got - wanted| / (1 + |wanted|) over pairs of arrays, or greatest mean of a pair; ModelError
    above tol."""
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        b = np.asarray(b, np.float64)
        if a.shape != b.shape:
            raise ModelError(f"{name}: the kernel gives {a.shape}, torch {b.shape}")
        if a.size:
            apart = np.abs(a - b) / (1 + np.abs(b))
            apart = np.where(np.isfinite(apart), apart, np.inf)
            worst = max(worst, float(apart.mean() if mean else apart.max()))
    if not worst <= tol:
        raise ModelError(
            f"{name}: torch and kernel differ by {worst:.2g}, allowed is {tol:g}; nothing is exported. "
            "The arrays do not belong to this network, or one of the two computes another formula"
        )
    return worst

"""The items that can be recommended: id <-> index, with what filters and people need.

An index never changes its meaning: a changed catalogue is made with `extend`, which appends new items
and keeps gone ones, marked unavailable. An event whose item is not in the catalogue has index -1 and is
known by `item_hash`: it moves the state and is not recommended.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from streamai.errors import CatalogueError
from streamai.kernels.index import find, find_all, hash128, hash_all, insert_all

ID_BYTES_MAX = 256
COLUMNS = ("id", "title", "price", "category", "available", "availability", "text", "vector")
_BLOCK = 16  # rows are padded to what the scan kernel takes at once
_YES = {"", "1", "true", "yes", "t", "y"}
_NO = {"0", "false", "no", "f", "n"}


def hash_id(item_id: str) -> tuple[int, int]:
    """The 128-bit hash of an item id, as events carry it."""
    raw = np.frombuffer(bytearray(item_id.encode()), np.uint8)  # writable: numba compiles by it
    h0, h1 = hash128(raw, 0, len(raw))
    return int(h0), int(h1)


class Catalogue:
    """An immutable table of n items (arrays are not flagged read-only: numba would compile twice).

    ids, titles, categories, texts  lists of n str ("" = none)
    available u1[cap], price f4[cap]  cap is n padded to a multiple of 16; spare rows are 0 and NaN
    vectors f4[n, T] or None        what `streamai items` made of each item's words; zeros = none
    attributes                      name -> list of n values of every other column of the file: text, a
                                    number, a list of texts, or None; what requests filter by
    table, hash0, hash1             for `kernels.index.find`; hash arrays by index
    id_bytes u1[...], id_at i4[n+1] the ids as JSON text without the quotes
    digest                          16 hex digits over everything above, in this order
    """

    def __init__(
        self,
        ids: Sequence[str],
        titles: Sequence[str] | None = None,
        price: Sequence[float] | None = None,
        categories: Sequence[str] | None = None,
        available: Sequence[int] | None = None,
        texts: Sequence[str] | None = None,
        vectors: np.ndarray | None = None,
        origin: str = "catalogue",
        attributes: Mapping[str, Sequence] | None = None,
    ) -> None:
        self.ids = list(ids)
        self.n = n = len(self.ids)
        blank = [""] * n
        self.titles = list(titles) if titles is not None else blank
        self.categories = list(categories) if categories is not None else blank
        self.texts = list(texts) if texts is not None else blank
        cap = max(_BLOCK, -(-n // _BLOCK) * _BLOCK)
        self.available = np.zeros(cap, np.uint8)
        self.available[:n] = 1 if available is None else np.asarray(available, np.uint8)
        self.price = np.full(cap, np.nan, np.float32)
        if price is not None:
            self.price[:n] = price
        self.vectors = None if vectors is None else np.ascontiguousarray(vectors, np.float32)
        self.attributes = {name: list(column) for name, column in sorted((attributes or {}).items())}
        self._index(origin)
        self.digest = self._digest()

    def __len__(self) -> int:
        return self.n

    def _index(self, origin: str) -> None:
        n = self.n
        raw = []
        for i, item_id in enumerate(self.ids):
            try:
                b = item_id.encode()
            except (UnicodeEncodeError, AttributeError):
                raise CatalogueError(f"{origin}, row {i}: id {item_id!r} is not UTF-8 text") from None
            if not 0 < len(b) <= ID_BYTES_MAX:
                raise CatalogueError(
                    f"{origin}, row {i}: id of {len(b)} bytes; expected 1 to {ID_BYTES_MAX}"
                )
            raw.append(b)
        at = np.zeros(n + 1, np.int64)
        np.cumsum([len(b) for b in raw], out=at[1:])
        self.hash0 = np.zeros(n, np.uint64)
        self.hash1 = np.zeros(n, np.uint64)
        hash_all(np.frombuffer(bytearray(b"".join(raw) or b"\0"), np.uint8), at, self.hash0, self.hash1)
        self.table = np.zeros(max(16, 1 << (2 * n - 1).bit_length() if n else 16), np.int32)
        twice = insert_all(self.table, self.hash0, self.hash1, n)
        if twice >= 0:
            raise CatalogueError(
                f"{origin}, row {twice}: id {self.ids[twice]!r} is there already; every item needs its own id"
            )
        escaped = [msgspec.json.encode(s)[1:-1] for s in self.ids]
        self.id_at = np.zeros(n + 1, np.int32)
        np.cumsum([len(b) for b in escaped], out=self.id_at[1:])
        self.id_bytes = np.frombuffer(bytearray(b"".join(escaped) or b"\0"), np.uint8)

    def _digest(self) -> str:
        h = hashlib.blake2b(digest_size=8)
        h.update(msgspec.json.encode([self.ids, self.titles, self.categories, self.texts]))
        h.update(self.available[: self.n].tobytes())
        h.update(self.price[: self.n].tobytes())
        if self.vectors is not None:
            h.update(self.vectors.tobytes())
        if self.attributes:
            h.update(msgspec.json.encode(self.attributes, enc_hook=str))
        return h.hexdigest()

    def index(self, item_id: str) -> int:
        """Index of an item, or -1."""
        h0, h1 = hash_id(item_id)
        return int(find(self.table, self.hash0, self.hash1, np.uint64(h0), np.uint64(h1)))

    def indices(self, raw: Sequence[bytes]) -> np.ndarray:
        """Indices i4[m] of items by their ids' UTF-8 bytes, -1 = not here."""
        at, out = np.zeros(len(raw) + 1, np.int64), np.zeros(len(raw), np.int32)
        np.cumsum([len(b) for b in raw], out=at[1:])
        joined = np.frombuffer(bytearray(b"".join(raw) + b"\0" * 16), np.uint8)
        find_all(self.table, self.hash0, self.hash1, joined, at, out)
        return out

    @staticmethod
    def token_hash(item_id: str) -> int:
        """What `EVENT.item_hash` holds for this id: the low 32 bits of its hash, never 0."""
        return (hash_id(item_id)[0] & 0xFFFFFFFF) | 1

    def extend(self, previous_ids: Sequence[str]) -> Catalogue:
        """This catalogue with the indices of an earlier one.

        Items of `previous_ids` keep their index, those that are gone stay as unavailable rows, new ones
        follow in this catalogue's order. Equal input gives an equal digest.
        """
        before = list(previous_ids)
        known = set(before)
        here = {s: i for i, s in enumerate(self.ids)}
        ids = before + [s for s in self.ids if s not in known]
        at = [here.get(s, -1) for s in ids]

        def take(column: list, missing="") -> list:
            return [column[i] if i >= 0 else missing for i in at]

        return Catalogue(
            ids,
            take(self.titles),
            [float(self.price[i]) if i >= 0 else math.nan for i in at],
            take(self.categories),
            [int(self.available[i]) if i >= 0 else 0 for i in at],
            take(self.texts),
            None if self.vectors is None else np.concatenate([self.vectors, self.vectors[:1] * 0])[at],
            origin="catalogue extended",
            attributes={name: take(column, None) for name, column in self.attributes.items()},
        )

    @classmethod
    def of_ids(cls, ids: Sequence[str]) -> Catalogue:
        """A catalogue of bare ids, all available."""
        return cls(ids, origin="list of ids")

    @classmethod
    def load(cls, path: str | Path) -> Catalogue:
        """Read a catalogue from .csv (UTF-8, header line) or .parquet.

        Columns: id (a must; text or integer), title, price, category, available (or availability), text,
        vector (lists of one length, from `streamai items`). A missing price is NaN, a missing availability
        is yes, a missing vector zeros. Any other column is an attribute that requests may filter by.
        CatalogueError names file, row and column.
        """
        path = Path(path)
        if not path.is_file():
            raise CatalogueError(f"{path}: no such file; expected a catalogue (.csv or .parquet, column id)")
        if path.suffix == ".csv":
            columns = _read_csv(path)
        elif path.suffix in (".parquet", ".pq"):
            columns = _read_parquet(path)
        else:
            raise CatalogueError(f"{path}: a catalogue is a .csv or a .parquet file, not {path.suffix!r}")
        if "id" not in columns:
            raise CatalogueError(f"{path}: no column id; it has {sorted(columns)}")
        if "availability" in columns:
            if "available" in columns:
                raise CatalogueError(f"{path}: both available and availability; expected one of them")
            columns["available"] = columns.pop("availability")
        n = len(columns["id"])
        return cls(
            [_id(v, path, i) for i, v in enumerate(columns["id"])],
            [_text(v) for v in columns.get("title", [None] * n)],
            [_price(v, path, i) for i, v in enumerate(columns.get("price", [None] * n))],
            [_text(v) for v in columns.get("category", [None] * n)],
            [_available(v, path, i) for i, v in enumerate(columns.get("available", [None] * n))],
            [_text(v) for v in columns.get("text", [None] * n)],
            _vectors(columns["vector"], path) if "vector" in columns else None,
            origin=str(path),
            attributes={name: column for name, column in columns.items() if name not in COLUMNS},
        )


def _read_csv(path: Path) -> dict[str, list]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f)
            names = next(reader, [])
            rows = [row for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as e:
        raise CatalogueError(f"{path}: not a CSV in UTF-8 ({e})") from e
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise CatalogueError(f"{path}, row {i}: {len(row)} fields; the header has {len(names)}")
    table = {name: [row[j] for row in rows] for j, name in enumerate(names)}
    return {name: column if name in COLUMNS else _numbers(column) for name, column in table.items()}


def _numbers(column: list[str]) -> list:
    """A CSV column that is not one of COLUMNS: numbers where all of it are, blank = None."""
    try:
        return [float(v) if v else None for v in column]
    except ValueError:
        return [v or None for v in column]


def _read_parquet(path: Path) -> dict[str, list]:
    import pyarrow
    import pyarrow.parquet as parquet  # heavy: only those who have parquet pay for it

    try:
        file = parquet.ParquetFile(path)
        return file.read().to_pydict()
    except pyarrow.ArrowInvalid as e:
        raise CatalogueError(f"{path}: not a parquet file ({e})") from e


def _id(value: object, path: Path, row: int) -> str:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise CatalogueError(f"{path}, row {row}: id is {value!r}; expected text or an integer")


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _vectors(values: list, path: Path) -> np.ndarray:
    """f4[n, T] of lists of T numbers; None is a row of zeros."""
    widths = {len(v) for v in values if v is not None}
    if len(widths) != 1 or widths == {0}:
        raise CatalogueError(
            f"{path}: column vector holds lists of {sorted(widths)} numbers; expected one length, as "
            "`streamai items` writes it"
        )
    out = np.zeros((len(values), widths.pop()), np.float32)
    for row, value in enumerate(values):
        if value is not None:
            out[row] = value
    if not np.isfinite(out).all():
        raise CatalogueError(f"{path}: column vector holds NaN or infinity; make it again (streamai items)")
    return out


def _price(value: object, path: Path, row: int) -> float:
    if value is None or value == "":
        return math.nan
    try:
        price = float(value)
    except (TypeError, ValueError):
        raise CatalogueError(f"{path}, row {row}: price is {value!r}; expected a number") from None
    if price < 0 or math.isinf(price):
        raise CatalogueError(f"{path}, row {row}: price is {price}; expected a number from 0 up")
    return price


def _available(value: object, path: Path, row: int) -> int:
    word = "" if value is None else str(value).strip().lower()
    if word in _YES or word in _NO:
        return int(word in _YES)
    raise CatalogueError(f"{path}, row {row}: available is {value!r}; expected true or false (or 1, 0)")

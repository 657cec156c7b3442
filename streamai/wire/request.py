"""What a record of kind `request` says beside its key, in JSON or behind a binary record.

candidates  list of item ids: only these are ranked
exclude     list of item ids never to answer with
filters     conditions, see catalogue_filter.py
k           items wanted
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streamai import catalogue_filter
from streamai.catalogue import Catalogue
from streamai.events import Request
from streamai.kernels.request import CANDIDATES_MAX, EXCLUDE_MAX
from streamai.wire.dead_letter import Rejected


def read(record: Mapping, catalogue: Catalogue, k_max: int) -> Request:
    """The variable part of a request; Rejected, with the cause, if it is malformed."""
    k = record.get("k")
    if k is not None and (type(k) is not int or not 1 <= k <= k_max):
        raise Rejected(f"k out of range: {str(k)[:40]}, expected 1 to {k_max}")
    candidates, unknown = _items(record, "candidates", CANDIDATES_MAX, catalogue)
    exclude, _ = _items(record, "exclude", EXCLUDE_MAX, catalogue)
    filters = ()
    if record.get("filters") is not None:
        try:
            filters = catalogue_filter.parse(record["filters"], catalogue)
        except ValueError as e:
            raise Rejected(f"malformed filter: {e}") from None
    barred = np.zeros(0, np.int32) if exclude is None else exclude
    return Request(k or 0, candidates, unknown, barred, filters)


def _items(record: Mapping, name: str, most: int, catalogue: Catalogue) -> tuple[np.ndarray | None, int]:
    """(indices i4[m] in the order given, each once, or None without the field; ids not in the catalogue)."""
    ids = record.get(name)
    if ids is None:
        return None, 0
    if type(ids) is not list:
        raise Rejected(f"wrong type: {name} is not a list")
    if len(ids) > most:
        raise Rejected(f"{name} of {len(ids)} items exceeds {most}")
    try:
        raw = [(str(i) if type(i) is int else i).encode() for i in ids]
    except AttributeError:
        raise Rejected(f"wrong type: {name} holds what is no item id") from None
    except UnicodeEncodeError:
        raise Rejected(f"{name} is not Unicode text") from None
    found = catalogue.indices(raw)
    known = found[found >= 0]
    return known[np.sort(np.unique(known, return_index=True)[1])], len(found) - len(known)

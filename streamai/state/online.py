"""What the ranking head learnt online, as a checkpoint holds it: small enough to be written whole."""

from __future__ import annotations

import struct

import numpy as np

from streamai.kernels import context as c

_HEAD = struct.Struct("<qq")  # period of the served copy, number of items


def packed(arrays: dict[str, np.ndarray], clock: np.ndarray) -> bytes:
    """Of the state arrays; nothing where the flow does not learn online."""
    if not len(arrays["learnt_bias"]):
        return b""
    head = _HEAD.pack(int(clock[c.REFRESHED]), len(arrays["learnt_bias"]))
    return head + b"".join(arrays[name].tobytes() for name in _NAMES)


def restore(data: bytes | None, arrays: dict[str, np.ndarray], clock: np.ndarray) -> None:
    """Into the state arrays. A catalogue that has grown since begins with no bias for what is new; data of a
    flow that learnt online is passed over by one that does not."""
    if not data or not len(arrays["learnt_bias"]):
        return
    clock[c.REFRESHED], items = _HEAD.unpack_from(data)
    at = _HEAD.size
    for name in _NAMES:
        n = items if name.endswith("bias") else len(arrays[name])
        stored = np.frombuffer(data, "f4", n, at)
        arrays[name][:n] = stored[: len(arrays[name])]
        at += stored.nbytes


_NAMES = ("learnt_w", "served_w", "learnt_bias", "served_bias")

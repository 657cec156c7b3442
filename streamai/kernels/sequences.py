"""Whole columns as the served kernels see them one event at a time; for training."""

from numba import njit

from . import jit
from .lm import gap_bucket


@njit(**jit)
def gap_buckets(dt_ns, out):
    """`lm.gap_bucket` of every dt_ns i8[n] into out u1[n]."""
    for i in range(dt_ns.size):
        out[i] = gap_bucket(dt_ns[i])

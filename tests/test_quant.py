"""Products in 8 bits: the integers of numpy on both paths, whatever the processor; halves by every bit."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamai.kernels import half, quant, simd


def oracle(x, w, steps):
    """y and the whole numbers behind it, in plain numpy."""
    step = np.abs(x).max() / np.float32(127)
    if step <= 1e-30:
        return np.zeros(w.shape[1], "f4")
    whole = np.rint(x * (np.float32(1) / step)).astype("i8")
    return (whole @ w.astype("i8")).astype("f4") * (steps * step)


def product(x, w, steps):
    packed, sums = np.zeros(w.size, "i1"), np.zeros(w.shape[1], "i4")
    quant.pack(w, packed, sums)
    y = np.full(w.shape[1], np.nan, "f4")
    quant.matvec(x, np.zeros(len(x), "u1"), packed, 0, w.shape[1], sums, steps, 0, y)
    return y


SHAPES = [(16, 16), (64, 256), (64, 64), (64, 352), (176, 64), (128, 512), (352, 128), (48, 336)]


@pytest.mark.parametrize("n, m", SHAPES)
def test_product_has_the_bits_of_whole_numbers(n, m):
    r = np.random.default_rng(n * m)
    w, steps = r.integers(-127, 128, (n, m)).astype("i1"), r.random(m).astype("f4")
    for scale in (1e-20, 1.0, 1e9):
        x = (r.standard_normal(n) * scale).astype("f4")
        assert product(x, w, steps).tobytes() == oracle(x, w, steps).tobytes()


def test_extremes_do_not_overflow():
    w, steps = np.full((1024, 16), -127, "i1"), np.ones(16, "f4")
    x = np.full(1024, 3.0, "f4")
    assert (product(x, w, steps) == oracle(x, w, steps)).all() and product(x, w, steps)[0] < -390_000
    assert not product(np.zeros(1024, "f4"), w, steps).any()
    assert not product(np.full(1024, 1e-38, "f4"), w, steps).any()  # too small for a step: nothing


@njit
def both(w, x, fast, plain):
    a = b = simd.zero_integers()
    for i in range(0, x.size, 4):
        a = simd.dot_quads(a, w, 16 * i, x, i)
        b = simd.dot_quads_portable(b, w, 16 * i, x, i)
    simd.store_integers(fast, 0, a)
    simd.store_integers(plain, 0, b)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), quads=st.integers(1, 40))
def test_the_instruction_and_the_portable_path_give_the_same_integers(seed, quads):
    r = np.random.default_rng(seed)
    w, x = r.integers(-128, 128, 64 * quads).astype("i1"), r.integers(0, 256, 4 * quads).astype("u1")
    fast, plain = np.zeros(16, "i4"), np.zeros(16, "i4")
    both(w, x, fast, plain)
    wanted = (w.reshape(quads, 16, 4).astype("i8") * x.reshape(quads, 1, 4)).sum((0, 2))
    assert (fast == wanted).all() and (plain == wanted).all()


def test_a_processor_without_the_instruction_is_served_the_same_bytes(tmp_path):
    """A whole LM in another process that has to do without."""
    program = (
        "import numpy as np; from streamai.kernels import SIMD; from tests.test_lm import *\n"
        "q, s = run(in_int8(random_weights(64, 2, 176, 2))[0], *sequence(50, 50, 2), halves=True)\n"
        "print(SIMD); print(q.tobytes().hex())\n"
    )
    said = {}
    for simd_name in ("portable", ""):
        env = os.environ | {"STREAMAI_SIMD": simd_name}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        said[simd_name] = done.stdout.split()
    assert said["portable"][0] == "portable" and said["portable"][1] == said[""][1]


def test_every_half_widens_and_narrows_exactly():
    bits, out, back = np.arange(65536).astype("u2"), np.zeros(65536, "f4"), np.zeros(65536, "u2")
    half.widen_all(bits, out)
    wanted = bits.view("f2").astype("f4")
    numbers = np.isfinite(wanted)
    assert (out[numbers].view("u4") == wanted[numbers].view("u4")).all()
    assert (np.isnan(out) == np.isnan(wanted)).all() and (np.isinf(out) == np.isinf(wanted)).all()
    half.narrow_all(out, back)
    assert (back[numbers] == bits[numbers]).all()


def test_narrowing_is_to_nearest_even_and_stops_at_the_greatest_half():
    r = np.random.default_rng(3)
    halves = np.arange(0x7BFF).astype("u2").view("f2").astype("f4")
    ties = ((halves[:-1] + halves[1:]) / 2).astype("f4")
    many = r.standard_normal(100_000) * 10.0 ** r.uniform(-9, 4.8, 100_000)
    x = np.concatenate([many, ties, -ties]).astype("f4")
    out = np.zeros(len(x), "u2")
    half.narrow_all(x, out)
    with np.errstate(over="ignore"):
        wanted = x.astype("f2")
    wanted = np.where(np.isinf(wanted), np.copysign(np.float16(65504), wanted), wanted)
    assert (out == wanted.view("u2")).all()
    for x, wanted in ((65520.0, 65504.0), (1e9, 65504.0), (-np.inf, -65504.0), (65519.0, 65504.0)):
        assert half.widen(half.narrow(np.float32(x))) == wanted
    assert np.isnan(half.widen(half.narrow(np.float32(np.nan))))

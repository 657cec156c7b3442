"""Our exp, log and friends against numpy in higher precision, in ulp; special values; vector == scalar."""

import numpy as np
import pytest
from numba import njit

from streamai.kernels import maths


def _ulps(got, exact):
    """Greatest distance to the exact value in units in the last place of `got`'s type."""
    unit = np.spacing(np.abs(exact.astype(got.dtype))).astype(exact.dtype)
    return float(np.max(np.abs(got.astype(exact.dtype) - exact) / unit))


def _loop(f):
    """A compiled loop over `f`, as kernels use it: LLVM may vectorise it."""

    @njit
    def loop(x):
        y = np.empty_like(x)
        for i in range(x.size):
            y[i] = f(x[i])
        return y

    return loop


RNG = np.random.default_rng(7)
WIDE = np.concatenate([RNG.uniform(-87, 88, 40_000), RNG.normal(0, 1, 40_000), RNG.normal(0, 1e-4, 5_000)])
POSITIVE = np.concatenate([np.exp(RNG.uniform(-87, 88, 40_000)), RNG.uniform(0.4, 2.5, 40_000)])


NAMES = (
    "exp_f4", "log_f4", "log1p_f4", "sigmoid_f4", "silu_f4", "exp_f8", "exp2_f8", "log_f8",
)  # fmt: skip


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    "name, exact, x, ulp",
    [
        ("exp_f4", np.exp, WIDE, 2),
        ("log_f4", np.log, POSITIVE, 2),
        ("log1p_f4", np.log1p, np.concatenate([POSITIVE, RNG.uniform(-0.5, 0.5, 9_999)]), 4),
        ("sigmoid_f4", _sigmoid, WIDE, 4),
        ("silu_f4", lambda x: x * _sigmoid(x), WIDE, 5),
    ],
)
def test_f4_against_numpy(name, exact, x, ulp):
    x4 = x.astype("f4")
    got = _loop(getattr(maths, name))(x4)
    assert got.dtype == np.float32
    assert _ulps(got, exact(x4.astype("f8"))) <= ulp


@pytest.mark.parametrize(
    "name, exact, x",
    [
        ("exp_f8", np.exp, np.concatenate([WIDE * 8.0, WIDE])),
        ("exp2_f8", np.exp2, np.concatenate([WIDE * 11.0, WIDE])),
        ("log_f8", np.log, np.concatenate([POSITIVE, np.exp(RNG.uniform(-700, 700, 9_999))])),
    ],
)
def test_f8_against_numpy(name, exact, x):
    got = _loop(getattr(maths, name))(x)
    assert _ulps(got, exact(x.astype("longdouble"))) <= 2


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_special_values(kind):
    t = np.dtype(kind).type
    exp, log = getattr(maths, f"exp_{kind}"), getattr(maths, f"log_{kind}")
    for f in (exp, log):
        assert np.isnan(f(t(np.nan)))
    assert exp(t(0)) == 1 and log(t(1)) == 0
    assert exp(t(-1e4)) == 0 and exp(t(-np.inf)) == 0
    assert log(t(0)) == -np.inf and np.isnan(log(t(-1))) and log(t(np.inf)) == np.inf
    tiny = np.finfo(kind).smallest_subnormal * 5
    assert abs(log(tiny) - np.log(np.float64(tiny))) < 1e-4
    assert np.isfinite(exp(t(88.37)))


def test_limits():
    assert maths.exp_f4(np.float32(1e9)) == maths.exp_f4(np.float32(88.37))
    assert maths.exp_f8(710.0) == np.inf and np.isfinite(maths.exp_f8(709.0))
    for n in (-1022, -1, 0, 1, 10, 1023):
        assert maths.exp2_f8(float(n)) == 2.0**n
    assert maths.exp2_f8(-2000.0) == 0 and maths.exp2_f8(1e9) == np.inf and np.isnan(maths.exp2_f8(np.nan))
    assert maths.sigmoid_f4(np.float32(-1e9)) >= 0 and maths.sigmoid_f4(np.float32(1e9)) == 1
    assert maths.log1p_f4(np.float32(1e-30)) == np.float32(1e-30)
    assert maths.log1p_f4(np.float32(np.inf)) == np.inf


@pytest.mark.parametrize("name", NAMES)
def test_vectorised_loop_has_the_bits_of_one_by_one(name):
    f = getattr(maths, name)
    x = np.abs(WIDE[:997]).astype(name[-2:])
    together, one_by_one = _loop(f)(x), np.array([f(v) for v in x], x.dtype)
    assert together.tobytes() == one_by_one.tobytes()

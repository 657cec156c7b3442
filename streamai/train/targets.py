"""What a signal may be asked to foresee: labels of a market's future, thresholds fitted on the past alone.

With mid m, bid b, ask a, horizon h (events of the key, or time) and n the row at t + h:

    point        m_n / m_t - 1
    anchored     mean of m over (t, t + h] / m_t - 1
    smooth_both  mean of m over (t, t + h] / mean of m over (t - h, t] - 1     (Tsantekidis et al. 2017)
    tradable     b_n / a_t - 1 where positive (up), a_n / b_t - 1 where negative (down), else 0

smooth_both is largely foreseen by its own past: it is here to be compared with, beside persistence. Classes
are up and down beyond a threshold: mean |value| / 2 of the fitted part (tradable: 0, the spread is in it).
"""

from __future__ import annotations

import numpy as np

from streamai.errors import DeclarationError
from streamai.train.market import DOWN, FLAT, NO_LABEL, UP, Horizon

KINDS = ("point", "anchored", "smooth_both", "tradable")


def horizon(name: str) -> Horizon:
    """`100ms`, `5s` or `20ev`."""
    units = {"ms": 1_000_000, "s": 1_000_000_000}
    digits = name.rstrip("msev")
    unit = name[len(digits) :]
    if digits.isdecimal() and unit == "ev":
        return Horizon(name, events=int(digits))
    if digits.isdecimal() and unit in units:
        return Horizon(name, ns=int(digits) * units[unit])
    raise DeclarationError(f"horizon {name!r}: write a number and ms, s or ev")


def ends(event_ts_ns: np.ndarray, h: Horizon) -> tuple[np.ndarray, np.ndarray]:
    """Row at which a horizon ends i8[n], whether the data reaches so far bool[n]; one key's rows in order.

    By time it is the last row not later than the row's time + h.
    """
    n = len(event_ts_ns)
    if h.events:
        end = np.arange(n) + h.events
        return np.minimum(end, n - 1), end < n
    seen = np.maximum.accumulate(event_ts_ns)
    end = np.searchsorted(seen, seen + h.ns, side="right") - 1
    return end, seen + h.ns <= seen[-1] if n else np.zeros(0, bool)


def values(
    kind: str, event_ts_ns: np.ndarray, bid: np.ndarray, ask: np.ndarray, h: Horizon
) -> tuple[np.ndarray, np.ndarray]:
    """Value f8[n] of each row and the row i8[n] that it is known with; NaN where the data ends first, a price
    is missing, or the key's next row has the same time (its book is half updated)."""
    n = len(event_ts_ns)
    end, whole = ends(event_ts_ns, h)
    mid, rows = (bid + ask) / 2, np.arange(n)
    settled = np.append(event_ts_ns[1:] != event_ts_ns[:-1], True)[:n]
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == "point":
            out = mid[end] / mid - 1
        elif kind == "anchored":
            out = _mean(mid, rows + 1, end + 1) / mid - 1
        elif kind == "smooth_both":
            back = h.events or 0
            first = rows - back + 1 if back else np.searchsorted(event_ts_ns, event_ts_ns - h.ns, "right")
            whole = whole & (first >= 0) & (event_ts_ns - h.ns >= event_ts_ns[0] if not back else True)
            out = _mean(mid, rows + 1, end + 1) / _mean(mid, np.maximum(first, 0), rows + 1) - 1
        elif kind == "tradable":
            long, short = bid[end] / ask - 1, ask[end] / bid - 1
            out = np.where(long > 0, long, np.where(short < 0, short, 0.0))
            out = np.where(np.isfinite(long + short), out, np.nan)
        else:
            raise DeclarationError(f"label {kind!r}: expected one of {', '.join(KINDS)}")
    return np.where(whole & settled, out, np.nan), end


def _mean(x: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Means of x[first : stop]; of nothing x at first - 1, the row's own. NaN if one is missing there."""
    bad = ~np.isfinite(x)
    # from the first price on, so that the sums stay small and nothing cancels
    base = x[~bad][0] if (~bad).any() else 0.0
    total = np.concatenate([[0.0], np.cumsum(np.where(bad, 0.0, x - base))])
    missing = np.concatenate([[0], np.cumsum(bad)])
    n = stop - first
    mean = base + (total[stop] - total[np.minimum(first, stop)]) / np.maximum(n, 1)
    mean = np.where(n > 0, mean, x[np.maximum(first - 1, 0)])
    return np.where(missing[stop] - missing[np.minimum(first, stop)] > 0, np.nan, mean)


def threshold(kind: str, fitted: np.ndarray) -> float:
    """From the values of the fitted part alone."""
    known = fitted[np.isfinite(fitted)]
    return 0.0 if kind == "tradable" or not len(known) else float(np.abs(known).mean() / 2)


def classes(value: np.ndarray, edge: float) -> np.ndarray:
    """DOWN, FLAT or UP i1[n] of values; NO_LABEL of NaN."""
    out = np.where(value > edge, UP, np.where(value < -edge, DOWN, FLAT))
    return np.where(np.isfinite(value), out, NO_LABEL).astype(np.int8)

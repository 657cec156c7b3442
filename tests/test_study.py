"""Labels against loops, splits without the future, and the baselines in one harness."""

import json

import numpy as np
import pytest
import torch

from streamai import cli
from streamai.errors import DeclarationError
from streamai.evaluate import metrics as m
from streamai.train.bin_ctabl import BinCtabl, windows
from streamai.train.market import DOWN, FLAT, NO_LABEL, UP
from streamai.train.targets import KINDS, classes, horizon, threshold, values
from tests.test_train_flow import made  # noqa: F401  (a fixture)

MS = 1_000_000


def book(n=120, seed=4):
    r = np.random.default_rng(seed)
    ts = np.cumsum(r.integers(0, 3, n)) * 40 * MS  # ties too
    mid = 100 + np.cumsum(r.choice([-0.01, 0, 0.01], n))
    half = r.choice([0.005, 0.01], n)
    bid, ask = mid - half, mid + half
    bid[r.random(n) < 0.03] = np.nan
    return ts, bid, ask


def by_hand(kind, ts, bid, ask, h, i):
    """Value of row i, or NaN."""
    n, mid = len(ts), (bid + ask) / 2
    if i + 1 < n and ts[i + 1] == ts[i]:
        return np.nan
    if h.events:
        end, after = i + h.events, range(i + 1, i + h.events + 1)
        before = range(i - h.events + 1, i + 1)
        if end >= n or (kind == "smooth_both" and i - h.events + 1 < 0):
            return np.nan
    else:
        if ts[i] + h.ns > ts[-1] or (kind == "smooth_both" and ts[i] - h.ns < ts[0]):
            return np.nan
        after = [j for j in range(i + 1, n) if ts[j] <= ts[i] + h.ns]
        before = [j for j in range(i + 1) if ts[j] > ts[i] - h.ns]
        end = after[-1] if after else i
    future = np.mean([mid[j] for j in after]) if len(after) else mid[i]
    if kind == "point":
        return mid[end] / mid[i] - 1
    if kind == "anchored":
        return future / mid[i] - 1
    if kind == "smooth_both":
        return future / np.mean([mid[j] for j in before]) - 1
    long, short = bid[end] / ask[i] - 1, ask[end] / bid[i] - 1
    return np.nan if np.isnan(long + short) else long if long > 0 else short if short < 0 else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["1ev", "7ev", "100ms", "1s"])
def test_values_are_those_of_a_loop(kind, name):
    ts, bid, ask = book()
    got, end = values(kind, ts, bid, ask, horizon(name))
    wanted = np.array([by_hand(kind, ts, bid, ask, horizon(name), i) for i in range(len(ts))])
    assert got == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert np.isfinite(got).sum() > 20 and (end >= np.arange(len(ts))).all()


def test_a_tradable_move_is_one_beyond_the_spread():
    ts = np.arange(4) * 1000 * MS
    bid, ask = np.array([10.0, 10.1, 10.3, 9.0]), np.array([10.2, 10.3, 10.5, 9.2])
    got, _ = values("tradable", ts, bid, ask, horizon("1ev"))
    assert got[0] == 0 and got[1] == 0 and got[2] == pytest.approx(9.2 / 10.3 - 1) and np.isnan(got[3])
    assert classes(got, 0.0).tolist() == [FLAT, FLAT, DOWN, NO_LABEL]
    got, _ = values("tradable", ts, bid, ask, horizon("2ev"))
    assert got[0] == pytest.approx(10.3 / 10.2 - 1)
    with pytest.raises(DeclarationError, match="expected one of point"):
        values("other", ts, bid, ask, horizon("1ev"))


def test_thresholds_come_from_what_was_fitted():
    value = np.array([0.001, -0.003, np.nan, 0.5, -0.9])
    edge = threshold("anchored", value[:3])
    assert edge == pytest.approx(0.001)  # half the mean size; the later, wilder part has no say
    assert classes(value, edge).tolist() == [FLAT, DOWN, NO_LABEL, UP, DOWN]
    assert threshold("tradable", value) == 0


def test_bin_ctabl_is_small_and_its_windows_end_at_the_row():
    model = BinCtabl(26, 10)
    assert sum(p.numel() for p in model.parameters()) < 12_000
    x = torch.arange(12.0)[:, None].repeat(1, 2)
    w = windows(x, torch.tensor([5, 8]), torch.tensor([0, 7]), 4)
    assert w[0, 0].tolist() == [2, 3, 4, 5] and w[1, 1].tolist() == [7, 7, 7, 8]
    assert model(torch.randn(3, 26, 10)).shape == (3, 3)


def test_matthews_and_its_interval():
    truth, guess = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 2])
    assert m.matthews(truth, guess) == pytest.approx(1) and m.matthews(truth, np.zeros(6, int)) == 0
    two = np.array([0, 1, 1, 0, 1, 1, 0, 0]), np.array([0, 1, 0, 0, 1, 1, 1, 0])
    tp, tn, fp, fn = 3, 3, 1, 1
    exact = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert m.matthews(*two, classes=2) == pytest.approx(exact)
    block = np.repeat(np.arange(10), 20)
    truth = np.random.default_rng(0).integers(0, 3, 200)
    low, high = m.block_bootstrap(m.accuracy, block, truth, np.zeros(200, int))
    assert low < m.accuracy(truth, np.zeros(200, int)) < high


def test_the_study_runs_every_model_and_leaks_nothing(made, tmp_path, capsys):  # noqa: F811
    events, out = str(made / "market.parquet"), str(tmp_path / "t.weights")
    words = ["train", "agents.trade", "--events", events, "--no-head", "--d", "16", "--layers", "1",
             "--epochs", "1", "--out", out, "--json"]  # fmt: skip
    assert cli.main(words) == 0
    words = ["study", "agents.trade", "--events", events, "--model", out, "--labels", "anchored", "tradable",
             "--horizons", "10ev", "1s", "--json"]  # fmt: skip
    assert cli.main(words) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert len(rows) == 2 * 2 * 7 and len({r["n"] for r in rows if r["horizon"] == "10ev"}) == 1
    by = {(r["label"], r["horizon"], r["model"]): r for r in rows}
    for r in rows:
        assert 0 <= r["macro_f1"] <= 1 and r["macro_f1_low"] <= r["macro_f1_high"]
        assert abs(r["rank_ic"]) < 0.9, "nothing honest foresees so much"
    assert by["anchored", "10ev", "majority"]["mcc"] == 0
    assert by["anchored", "10ev", "lightgbm"]["accuracy"] > 0.3
    early = [*words[:4], "--model", out, "--share", "0.3"]
    assert cli.main(early) == 1  # the LM has seen what would be judged

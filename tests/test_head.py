"""The ranking head: what it learns from logged candidates, when it gives way, whether its scores are true."""

import numpy as np
import pytest
import torch
from rich.console import Console

from streamai.errors import ModelError
from streamai.train.head import (
    HeadRecipe,
    Logged,
    Norm,
    calibrated,
    calibration_error,
    fit_head,
    ndcg10,
    score_plain,
)

QUIET = Console(quiet=True)


def logged(n=800, C=30, d=4, features=3, seed=0):
    """The next item is the candidate with the largest weighted sum of two inputs and an item feature."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, C, 16)).astype(np.float32)
    z[..., 7] = 0
    items = rng.standard_normal((n, C, 2)).astype(np.float32)
    user = rng.standard_normal((n, d + features + 3)).astype(np.float32)
    user[rng.random(user.shape) < 0.1] = np.nan
    user[:, :d], user[:, d + features :] = np.nan_to_num(user[:, :d]), 0
    target = np.zeros((n, C), np.float32)
    target[np.arange(n), (z[..., 0] + 2 * z[..., 3] + items[..., 1]).argmax(1)] = 1
    items[0, 0] = np.nan
    target[:40] = 0
    return Logged(z, items, np.full(n, C, np.int32), target, user)


def test_head_learns_from_logged_candidates():
    d, features, data = 4, 3, logged()
    arrays, figures = fit_head(data, d, HeadRecipe(), console=QUIET)
    assert figures["with_target"] == 760 and figures["ndcg@10"] > 0.8 > figures["lm_ndcg@10"]
    assert "fell_back" not in figures and figures["ece"] < 0.03
    assert {k: v.shape for k, v in arrays.items()} == {
        "head_mean": (16,), "head_inv": (16,), "head_w": (16,), "head_b": (1,), "head_items": (2,),
        "head_Wz": (16, 16), "head_W2": (16,), "head_bu": (16,), "head_Wu": (d + features + 3, 16),
        "feat_mean": (features,), "feat_inv": (features,),
    }  # fmt: skip
    # the part that all candidates share does not read this LM's output: another training of it is served
    assert not arrays["head_Wu"][:d].any() and arrays["head_Wu"][d:].any()
    # the arrays are the function that was fitted
    hits = []
    for i in range(700, 800):
        z, f = data.z[i].copy(), (data.items[i] - arrays["feat_mean"][-2:]) * arrays["feat_inv"][-2:]
        z[:, 15] = f @ arrays["head_items"]
        hits.append(score_plain(arrays, z, data.user[i], d).argmax() == data.target[i].argmax())
    assert np.mean(hits) > 0.6


def test_a_head_that_does_not_beat_the_plain_sum_gives_way_to_it():
    data = logged(n=120)
    best = (data.z[..., 0] + data.z[..., 1]).argmax(1)
    target = np.zeros_like(data.target)
    target[np.arange(120), best] = 1
    # what the head can learn from the first part is wrong in the part that is held out
    wrong = np.zeros_like(target[:90])
    wrong[np.arange(90), data.z[:90, :, 5].argmax(1)] = 1
    target[:90] = wrong
    arrays, figures = fit_head(
        Logged(data.z, data.items, data.count, target, data.user), 4, HeadRecipe(held_out=0.25), console=QUIET
    )
    assert figures["fell_back"] and figures["ndcg@10"] == figures["plain_ndcg@10"] > 0.95
    w = arrays["head_w"] * arrays["head_inv"]
    assert w[0] == pytest.approx(w[1], rel=1e-3) and not arrays["head_W2"].any()


def test_head_needs_targets_among_candidates():
    data = Logged(
        np.zeros((50, 4, 16), np.float32), np.zeros((50, 4, 0), np.float32), np.full(50, 4),
        np.zeros((50, 4), np.float32), np.zeros((50, 9), np.float32),
    )  # fmt: skip
    with pytest.raises(ModelError, match="0 of 50 events have their target among the candidates"):
        fit_head(data, 6, console=QUIET)


def test_ndcg_of_shared_targets_counts_ties_and_misses_against():
    scores = np.array([[3.0, 2.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 0, 0, 0]], np.float32)
    target = np.array([[0.5, 0.5, 0, 0], [0, 0, 0, 0], [1.0, 0, 0, 0]], np.float32)
    log2 = np.log2
    assert ndcg10(scores, target) == pytest.approx((0.5 + 0.5 / log2(4) + 0 + 1) / 3)


def test_calibration_error_of_probabilities_that_are_right_and_wrong():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(12), 4000).astype(np.float32)
    came = np.array(
        [rng.multinomial(1, row / row.astype(float).sum()) for row in p.astype(float)], np.float32
    )
    assert calibration_error(p, came) < 0.01 < 0.05 < calibration_error(np.minimum(1, 2 * p), came)
    # halved logits are told from right ones: their inverse temperature is 2
    logits = torch.from_numpy(np.log(p / p[:, -1:]))
    inverse, shift = calibrated(logits[:, :-1] / 2, torch.from_numpy(came[:, :-1]))
    assert inverse == pytest.approx(2, rel=0.1) and shift == pytest.approx(0, abs=0.1)


def test_norm_of_columns_without_values_or_spread():
    norm = Norm.of(np.array([[1.0, np.nan, 5.0], [3.0, np.nan, 5.0]], np.float32))
    assert norm.mean.tolist() == [2, 0, 5] and norm.inv.tolist() == [1, 0, 0]
    assert norm(np.array([[3.0, np.nan, np.inf]])).tolist() == [[1, 0, 0]]

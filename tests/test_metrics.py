"""Measures against examples worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai.evaluate import metrics as m
from streamai.evaluate.tally import windows


def f4(*values):
    return np.array(values, np.float32)


def test_ties_count_against_the_model():
    assert m.rank_dense(f4(3, 2, 2, 1), 1) == 3
    assert m.rank_dense(f4(3, 2, 2, 1), 0) == 1
    assert m.rank_dense(f4(2, 2, 2), 2) == 3


def test_a_target_outside_the_catalogue_or_without_a_score_is_a_miss():
    assert m.rank_dense(f4(1, 2), -1) == m.MISS
    assert m.rank_dense(f4(np.nan, 2), 0) == m.rank_dense(f4(0, 2), 0) == m.MISS
    assert m.rank_listed(np.array([4, 5]), -1) == m.MISS


def test_seen_items_leave_the_ranking():
    assert m.rank_dense(f4(3, 2, 2, 1), 3, seen=np.array([0, 2])) == 2
    assert m.rank_listed(np.array([9, 4, 7, -1]), 7, seen=np.array([4, 1])) == 2


def test_rank_in_a_served_list():
    assert m.rank_listed(np.array([9, 4, 7, -1]), 4) == 2
    assert m.rank_listed(np.array([9, 4, 7, -1]), 5) == m.MISS


@pytest.mark.parametrize("n", [6, 100])
def test_top_breaks_ties_to_the_lower_index_and_leaves_out_what_has_no_score(n):
    scores = np.zeros(n, np.float32)
    scores[[5, 2, 4]] = [1, 3, 1]
    assert m.top(scores, 2).tolist() == [2, 4]
    assert m.top(scores, 10).tolist() == [2, 4, 5]
    assert m.top(scores, 2, seen=np.array([2])).tolist() == [4, 5]


def test_hits_ndcg_mrr():
    ranks = np.array([1, 2, 11, m.MISS])
    assert m.hits(ranks, 10).tolist() == [1, 1, 0, 0]
    assert m.ndcg(ranks, 10).tolist() == pytest.approx([1, 1 / np.log2(3), 0, 0])
    assert m.mrr(ranks, 20).tolist() == pytest.approx([1, 0.5, 1 / 11, 0])


def test_mean_and_error():
    mean, error = m.mean_and_error(np.array([0.0, 1.0, 1.0, 0.0]))
    assert mean == 0.5 and error == pytest.approx(np.sqrt(1 / 3) / 2)
    assert np.isnan(m.mean_and_error(np.array([]))[0])
    # two lists of two equal targets are two draws, not four
    values, lists = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1])
    assert m.mean_and_error(values, lists)[1] == pytest.approx(m.mean_and_error(np.array([0.0, 1.0]))[1])


def test_gini():
    assert m.gini(np.array([5, 5, 5, 5])) == pytest.approx(0)
    assert m.gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert m.gini(np.array([1, 3])) == pytest.approx(0.25)
    assert np.isnan(m.gini(np.zeros(3, int)))


def test_correlations():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0])
    assert m.pearson(x, -x) == pytest.approx(-1)
    assert m.spearman(x, y) == pytest.approx(1)
    assert m.average_ranks(np.array([5.0, 1.0, 5.0, 7.0])).tolist() == [1.5, 0, 1.5, 3]
    assert np.isnan(m.pearson(x, np.ones(4)))


def test_accuracy_and_macro_f1():
    truth, guess = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    assert m.accuracy(truth, guess) == 0.5
    # class 0: 2*1/(2+1), class 1: 2*1/(1+3), class 2: 0
    assert m.macro_f1(truth, guess) == pytest.approx((2 / 3 + 0.5 + 0) / 3)
    assert m.macro_f1(np.array([1, 1]), np.array([1, 1])) == 1


def test_block_error_is_the_spread_of_blocks():
    x = np.array([0.0, 0.0, 1.0, 1.0])
    assert m.block_error(np.mean, x, blocks=2) == pytest.approx(np.std([0, 1], ddof=1) / np.sqrt(2))
    assert np.isnan(m.block_error(np.mean, x[:1], blocks=2))


def test_calibration_error_by_hand():
    chance = np.array([[0.9, 0.1, 0], [0.9, 0.1, 0], [0.2, 0.6, 0.2], [0.1, 0.25, 0.65]])
    truth = np.array([0, 1, 1, 2])
    # at 0.9: one of two right, 0.4 too sure each; at 0.6 to 0.7: both right, 0.4 and 0.35 too shy
    assert m.calibration_error(truth, chance) == pytest.approx((0.8 + 0.75) / 4)
    assert np.isnan(m.calibration_error(truth[:0], chance[:0]))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_what_comes_true_as_often_as_it_says_is_calibrated(seed):
    rng = np.random.default_rng(seed)
    chance = rng.dirichlet([1.0, 1.0, 1.0], 20_000)
    truth = (rng.random(20_000)[:, None] > chance.cumsum(1)).sum(1).clip(0, 2)
    assert m.calibration_error(truth, chance) < 0.03
    assert m.calibration_error((truth + 1) % 3, chance) > 0.2


def test_windows_are_means_in_order_and_leave_out_a_short_end():
    values = np.concatenate([np.full(10_000, 0.25), np.full(10_000, 0.5), np.full(5_000, 1.0)])
    assert windows(values) == [0.25, 0.5, 1.0]
    assert windows(values[:24_999]) == [0.25, 0.5] and windows(values[:10]) == []

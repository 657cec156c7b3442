"""Which tier is chosen: by the time that is left and by what waits behind."""

from hypothesis import given
from hypothesis import strategies as st

from streamai.deadline import Cost, Deadline, Tier, choose_tier, cut

COST = Cost(1_000, {Tier.FULL: 100, Tier.RANK: 20, Tier.PRIOR: 5, Tier.SILENT: 5})
numbers = st.integers(0, 10**6)


def test_by_the_time_that_is_left():
    """Ten events cost 2,000 ns at FULL and 1,200 at RANK."""
    lefts = (2_000, 1_999, 1_199, 1, 0, -5)
    of = [choose_tier(left, 10, 0, COST, Tier.SILENT) for left in lefts]
    assert of == [Tier.FULL, Tier.RANK, Tier.PRIOR, Tier.PRIOR, Tier.SILENT, Tier.SILENT]


def test_what_waits_behind_takes_from_the_time():
    of = [choose_tier(10_000, 10, backlog, COST, Tier.PRIOR) for backlog in (350, 351, 390, 391)]
    assert of == [Tier.FULL, Tier.RANK, Tier.RANK, Tier.PRIOR]


@given(numbers, st.integers(1, 300), numbers, st.sampled_from([Tier.PRIOR, Tier.FULL, Tier.SILENT]))
def test_more_time_is_never_poorer_and_more_backlog_never_richer(left, n, backlog, catch_up):
    here = choose_tier(left + 1, n, backlog, COST, catch_up)
    assert choose_tier(left + 500, n, backlog, COST, catch_up) >= here
    assert choose_tier(left + 1, n, backlog + 50, COST, catch_up) <= here


@given(st.integers(1, 10**8), st.integers(1, 10**4))
def test_a_cut_costs_a_fifth_of_the_budget_or_is_one_event(budget, n):
    size = cut(COST, budget, n)
    assert 1 <= size <= n
    assert size == 1 or COST.of(Tier.FULL, size) <= budget // 5
    assert size == n or COST.of(Tier.FULL, size + 1) > budget // 5


def test_a_deadline_counts_from_the_receive_time():
    due = Deadline.after(1_000, 500)
    assert due.left_ns(1_200) == 300 and due.left_ns(1_600) == -100

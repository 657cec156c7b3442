"""How long an event may take, and what is left out when time is short."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Tier(IntEnum):
    """Work done for an event; every tier makes the same state."""

    SILENT = 0  # state only, no output
    PRIOR = 1  # popularity; abstain for signals
    RANK = 2  # candidates from counts and popularity, head
    FULL = 3  # whole-catalogue scan, counts, head


TIER_NAMES = {t: t.name.lower() for t in Tier}


@dataclass(frozen=True)
class Cost:
    """Upper estimate of ns an event, by tier, and ns a call; measured at start on this machine."""

    call_ns: int
    event_ns: dict[Tier, int]

    def of(self, tier: Tier, n: int) -> int:
        return self.call_ns + n * self.event_ns[tier]


@dataclass(frozen=True)
class Deadline:
    """Moment by which a batch must have been scored: receive time of its oldest event + budget."""

    at_ns: int
    budget_ns: int

    @classmethod
    def after(cls, receive_ts_ns: int, budget_ns: int) -> Deadline:
        return cls(receive_ts_ns + budget_ns, budget_ns)

    def left_ns(self, now_ns: int) -> int:
        return self.at_ns - now_ns


def cut(cost: Cost, budget_ns: int, n: int) -> int:
    """How many of n events one step may take so that FULL costs at most a fifth of the budget."""
    fit = (budget_ns // 5 - cost.call_ns) // max(1, cost.event_ns[Tier.FULL])
    return max(1, min(n, int(fit)))


def choose_tier(left_ns: int, n: int, backlog: int, cost: Cost, catch_up: Tier) -> Tier:
    """The richest tier that n events can get before the deadline while `backlog` more wait behind them.

    left_ns   time left for this cut; <= 0 means it is already late and gets `catch_up`
    backlog   events of the same batch after this cut: they share the time that is left
    Pure: the clock is read by the caller, once a cut.
    """
    if left_ns <= 0:
        return catch_up
    waiting = cost.of(Tier.RANK, backlog) if backlog else 0
    for tier in (Tier.FULL, Tier.RANK):
        if cost.of(tier, n) + waiting <= left_ns:
            return tier
    return Tier.PRIOR

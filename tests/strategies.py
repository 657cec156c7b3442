"""What the property tests draw: the events of one key, with ties, disorder, gaps and missing columns."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from streamai.events import Schema
from tests.reference import Event

SECOND = 10**9
START = 1_700_000_000 * SECOND

steps = st.one_of(
    st.just(0),  # a tie
    st.integers(1, SECOND),
    st.integers(1, 90).map(lambda s: s * SECOND),  # lands on the edges of windows and hops
    st.integers(-40, -1).map(lambda s: s * SECOND),  # disorder
    st.integers(-30 * SECOND, -1),
    st.sampled_from([300, 3_600, 100_000]).map(lambda s: s * SECOND),  # everything but the last is gone
)


def _column(rule: str, missing: bool):
    numbers = {
        "any": st.integers(-80, 80),
        "positive": st.integers(1, 800),
        "non_negative": st.integers(0, 800),
        "sign": st.integers(-1, 1).map(lambda x: 8 * x),
    }[rule].map(lambda x: x / 8)
    return st.one_of(numbers, numbers, st.just(math.nan)) if missing else numbers


@st.composite
def events(draw, schema: Schema, most: int = 60) -> list[Event]:
    """Up to `most` events in the order of their coming. Columns are eighths, so that sums are exact."""
    columns = st.tuples(*(_column(c.rule, True) for c in schema.columns))
    kinds = st.sampled_from(sorted(schema.kinds.values()))
    items = st.one_of(st.just(0), st.integers(1, 12).map(lambda i: i * 2654435761 % 2**32 | 1))
    t, made = START, []
    for step, kind, item, values in draw(
        st.lists(st.tuples(steps, kinds, items, columns), min_size=1, max_size=most)
    ):
        newest = max((e.t for e in made), default=t)
        t = max(newest + step, 1)
        made.append(Event(t, kind, item, values))
    return made

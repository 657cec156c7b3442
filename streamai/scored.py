"""What comes out of one engine step, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCORED, LATE = 0, 1  # status of an event


@dataclass
class Scored:
    """Results of a step over `events` (the events that were taken, n rows, offset order).

    status    u1[n]      SCORED or LATE (late: changed no state, belongs on the late topic)
    tier      u1[n]      deadline.Tier used for the event; SILENT = state only, no output
    features  f4[n, F]   NaN = not seen
    hidden    f4[n, d]   LM output; zero width without a model
    items     i4[n, k]   catalogue indices, -1 = no more; zero width for flows without a catalogue
    scores    f4[n, k]   score of each item, or of each signal column, or of the user's scorer
    target    f8[n]      what `decide` wants (a position), NaN = none

    Arrays are views of the engine's scratch: encode or copy them before the next step.
    """

    events: object
    status: np.ndarray
    tier: np.ndarray
    features: np.ndarray
    hidden: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    target: np.ndarray

    def __len__(self) -> int:
        return len(self.status)

"""Where things lie in a key's row.

A row is R bytes, R a multiple of 8, all zero for a key that was never seen:

    cell 0   i8   newest event time, ns
    cell 1   i8   number of events
    cell 2   u8   digest of the model that made the LM state
    then     book (8 cells), the plan's cells, the event ring, the LM state
"""

from __future__ import annotations

from dataclasses import dataclass

HEADER_CELLS = 3
MODEL_CELL = 2
BOOK_CELLS = 8


@dataclass(frozen=True)
class Layout:
    """Where things lie in a row; offsets in 8-byte cells unless the name says bytes.

    plan_cells  state of the features
    ring        events kept; entry_bytes each: token i4, kind u1, gap u1, side i1[entry_bytes - 6]
    lm_floats   numbers of LM state; halves: they are kept in half precision
    head_floats numbers of the ranking head's shared part, for online learning
    """

    plan_cells: int
    ring: int
    entry_bytes: int
    lm_floats: int
    halves: bool = False
    head_floats: int = 0

    @property
    def plan_at(self) -> int:
        return HEADER_CELLS + BOOK_CELLS

    @property
    def ring_at(self) -> int:
        return self.plan_at + self.plan_cells

    @property
    def lm_at(self) -> int:
        return self.ring_at + (self.ring * self.entry_bytes + 7) // 8

    @property
    def head_at(self) -> int:
        per_cell = 4 if self.halves else 2
        return self.lm_at + -(-self.lm_floats // per_cell)

    @property
    def cells(self) -> int:
        return self.head_at + (self.head_floats + 1) // 2

    @property
    def row_bytes(self) -> int:
        return 8 * self.cells

"""Which row of a slab makes room: a clock over the clean ones."""

from numba import njit

from streamai.kernels import jit


@njit(**jit)
def victim(dirty, in_flight, pinned, recent, batch, hand):
    """A row that is clean, not needed by this batch and not touched lately.

    dirty, in_flight, recent u1[S]; pinned i8[S]. Returns (slot or -1, new hand). Second chance: a row
    touched since the hand last passed is spared once.
    """
    n = dirty.size
    for _ in range(2 * n):
        slot = hand
        hand = hand + 1 if hand + 1 < n else 0
        if dirty[slot] or in_flight[slot] or pinned[slot] == batch:
            continue
        if recent[slot]:
            recent[slot] = 0
            continue
        return slot, hand
    return -1, hand

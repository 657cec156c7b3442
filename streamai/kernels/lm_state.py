"""The LM's state in a key's row: where it lies, and how it is made anew."""

from numba import njit

from . import context as c
from . import half, jit, lm


@njit(**jit)
def state_of(T, S, W, slot):
    """The row's LM state as floats: the row itself, or W.lm_state where it is kept in halves."""
    at, n = T.shape[c.LM_AT], T.shape[c.LM_FLOATS]
    if T.shape[c.HALVES] == 0:
        return S.rows_f4[slot, at : at + n]
    half.widen_all(S.rows_u2[slot, 2 * at : 2 * at + n], W.lm_state)
    return W.lm_state


@njit(**jit)
def rebuild(T, S, W, slot, state):
    """LM state of a row that another model made, into `state`: anew, from its ring. Also fills W.q."""
    shape = T.shape
    at = shape[c.RING_AT]
    lm.rebuild(
        S.rows_u1[slot, at : at + shape[c.RING] * shape[c.ENTRY]], shape[c.ENTRY], S.rows_i8[slot, 1], T.item,
        T.present, T.unknown, T.kind_emb, T.gap_emb, T.Wside, T.Wg, T.bg, T.cw, T.cb, T.lam, T.gap_w, T.Wo,
        T.W1, T.W2, T.Wq, T.Ws, T.Wc, T.final_gain, shape[c.HALVES] != 0, state, W.lm, W.octets,
        W.side_f4[: T.Wside.shape[0]], W.q,
    )  # fmt: skip


@njit(**jit)
def query(T, S, W, slot):
    """The LM's output after the key's newest event into W.q; nothing is written to the row."""
    if S.rows_u8[slot, 2] != S.digest[0]:
        rebuild(T, S, W, slot, W.lm_state)
        return
    state = state_of(T, S, W, slot)
    d = W.q.size
    for j in range(d):
        W.q[j] = state[state.size - d + j]

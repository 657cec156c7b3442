"""From the LM's output to the probabilities of a market flow."""

from numba import njit

from . import jit, rank


@njit(**jit)
def signal(T, W, i):
    """(down, flat, up) of every horizon into W.scores[i]; zeros where the model has no signal head."""
    if T.sig_temp.size > 0:
        used = T.sig_W1.shape[0] - W.q.size - T.feat_mean.size
        rank.signal_head(
            W.q, W.features[i], W.side_f4[:used], T.feat_mean, T.feat_inv, T.sig_W1, T.sig_b1, T.sig_W2,
            T.sig_b2, T.sig_temp, W.user, W.scores[i],
        )  # fmt: skip

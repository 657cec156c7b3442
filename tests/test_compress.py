"""Compression: what is pruned did least, low rank is the best there is, 8 bits stay where they are cheap."""

import numpy as np
import pytest
import torch
from rich.console import Console

from streamai.errors import SettingsError
from streamai.model import weights
from streamai.train.compress import Compression, Table, compress, low_rank, pruned
from streamai.train.data import batch
from streamai.train.export import export
from streamai.train.fit import Recipe
from streamai.train.model import EventLM, Shape, in_steps
from tests.test_distil import made

QUIET = Console(quiet=True)
RECIPE = Recipe(epochs=1, batch=8)


def lm_of(vocab, d=16):
    torch.manual_seed(5)
    return EventLM(Shape(len(vocab), d, 2), 0.0)


def outputs(model, seq):
    b = batch(seq, seq.start[:4], seq.lengths()[:4], model.shape.vocabulary)
    model.eval()
    with torch.no_grad():
        return model(b.token, b.kind, b.gap, b.side)


def test_units_that_do_nothing_are_the_ones_that_go():
    seq, vocab = made()
    model = lm_of(vocab)
    idle = torch.randperm(48)[:16]
    with torch.no_grad():
        for block in model.blocks:
            block.W2[idle] = 0
    small = pruned(model, seq, 32)
    assert small.shape.mlp == 32 and small.blocks[0].W1.shape == (16, 64)
    torch.testing.assert_close(outputs(small, seq), outputs(model, seq))
    for keep in (24, 64, 8):
        with pytest.raises(SettingsError, match="multiple of 16"):
            pruned(model, seq, keep)


def test_the_low_rank_table_is_the_nearest_one_and_is_written_as_a_product(tmp_path):
    seq, vocab = made()
    model = lm_of(vocab)
    new = low_rank(model, 5)
    u, s, v = np.linalg.svd(model.item.detach().numpy().astype("f8"), full_matrices=False)
    assert np.allclose(new.item.detach().numpy(), (u[:, :5] * s[:5]) @ v[:5], atol=1e-5)
    export(tmp_path / "w", new, "clicks", seq, vocabulary=vocab)
    file = weights.read(tmp_path / "w")
    assert file.arrays["item_u"].shape == (len(vocab), 5) and file.header["rank"] == 5
    assert np.allclose(file.items(), new.item.detach().numpy(), atol=1e-5)
    new.int8 = True
    export(tmp_path / "q", new, "clicks", seq, vocabulary=vocab)
    assert weights.read(tmp_path / "q").arrays["item_u_q"].dtype == np.int8
    with pytest.raises(SettingsError, match="--rank 16"):
        low_rank(model, 16)


def test_steps_are_rounded_to_127_and_the_gradient_goes_straight_through():
    x = torch.tensor([[0.5, -1.27, 0.004], [0.0, 0.0, 0.0]], requires_grad=True)
    y = in_steps(x, 1)
    assert y.detach().numpy() == pytest.approx(np.array([[0.5, -1.27, 0.0], [0, 0, 0]]), abs=1e-6)
    y.sum().backward()
    assert (x.grad == 1).all()


def run(todo, ndcg):
    """Compression of a model whose quality is said to be ndcg(model)."""
    seq, vocab = made()
    model = lm_of(vocab)
    table = Table(lambda m: {"ndcg@10": ndcg(m), "hr@10": 0.5}, seq, "clicks", vocab)
    table.measure("trained", model)
    return compress(model, seq, RECIPE, todo, table, QUIET), table.rows


def test_every_step_is_measured_and_smaller_than_the_one_before():
    model, rows = run(Compression(prune=32, rank=8, tune_epochs=1), lambda m: 0.5)
    assert [r["step"] for r in rows] == [
        "trained", "MLP pruned to 32", "items of rank 8", "int8", "state in halves",
    ]  # fmt: skip
    assert all(a["model_bytes"] > b["model_bytes"] for a, b in zip(rows[:3], rows[1:4]))
    assert [r["key_bytes"] for r in rows] == [4 * 9 * 16] * 4 + [2 * 9 * 16]
    assert all(r["us_per_event"] > 0 and r["kept"] for r in rows)
    assert model.int8 and model.halves and model.shape.mlp == 32 and model.low_rank() is not None


def test_8_bits_that_cost_too_much_are_trained_for_and_else_left_out():
    tries = iter([0.5, 0.4, 0.499])  # trained, int8, trained for int8
    model, rows = run(Compression(tune_epochs=1, state="f4"), lambda m: next(tries))
    assert [(r["step"], r["kept"]) for r in rows] == [
        ("trained", True), ("int8", False), ("int8, trained for", True),
    ]  # fmt: skip
    assert model.int8 and not model.halves
    model, rows = run(Compression(tune_epochs=1), lambda m: 0.4 if m.int8 else 0.5)
    assert not model.int8 and not model.halves and [r["kept"] for r in rows] == [True, False, False]


def test_what_is_turned_off_is_not_done():
    model, rows = run(Compression(int8="off", state="f4"), lambda m: 0.5)
    assert [r["step"] for r in rows] == ["trained"] and model.flags() == {}
    model, rows = run(Compression(int8="on", state="f4"), lambda m: 0.1 if m.int8 else 0.5)
    assert model.flags() == {"int8": True}

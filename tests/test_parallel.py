"""Data, tensor and pipeline parallel on two processes give what one process gives, on the same batches."""

import numpy as np
import pytest

from streamai.errors import SettingsError
from streamai.train.data import batch
from streamai.train.fit import Recipe
from streamai.train.parallel import Job, check, rows_of, train
from streamai.train.teacher import TeacherShape
from tests.test_distil import made

SEQ, VOCAB = made(users=24, most=20)
SHAPE = TeacherShape(len(VOCAB), d=16, layers=2, heads=2, mlp=32, window=24)
RECIPE = Recipe(epochs=2, batch=8, window=24, rate=5e-3, precision="f32", warm_up=2, clip=0.5)


def job(mode="data", nproc=2, **changes):
    return Job(SHAPE, SEQ, RECIPE, 0.0, True, nproc, mode, **changes)


@pytest.fixture(scope="module")
def alone():
    return train(job(nproc=1), lambda text: None)


@pytest.mark.parametrize("mode", ["data", "tensor", "pipeline"])
def test_two_processes_learn_what_one_does(alone, mode):
    model, records = train(job(mode), lambda text: None)
    other, wanted = alone
    assert [r["loss"] for r in records] == pytest.approx([r["loss"] for r in wanted], rel=1e-4)
    assert records[1]["loss"] < records[0]["loss"]
    theirs = dict(other.named_parameters())
    for name, p in model.named_parameters():
        if not p.numel():
            continue
        apart = np.abs(p.detach().numpy() - theirs[name].detach().numpy()).max()
        assert apart < 2e-3, f"{name}: {apart}"  # Adam turns a difference of rounding into one of its rate


def test_a_batch_is_shared_out_by_rows():
    b = batch(SEQ, SEQ.start[:5], SEQ.lengths()[:5], len(VOCAB))
    T = b.token.shape[1]
    met = []
    for rank in range(2):
        part = rows_of(b, rank, 2)
        assert part.token.shape == (3 - rank, T)
        for at, target, event in zip(part.at, part.target, part.event):
            row, t = int(at) // T, int(at) % T
            assert part.token[row, t] == b.token[rank + 2 * row, t]
            met.append((int(event), int(target)))
    assert sorted(met) == sorted(zip(b.event.tolist(), b.target.tolist()))


def test_what_cannot_be_divided_is_said():
    with pytest.raises(SettingsError, match="do not divide by --nproc 3"):
        check(job("tensor", 3))
    with pytest.raises(SettingsError, match="2 layers for --nproc 3"):
        check(job("pipeline", 3))
    with pytest.raises(SettingsError, match="expected one of"):
        check(job("model", 2))

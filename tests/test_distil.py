"""Teacher, its answers, and a student's loss towards them."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from streamai.errors import ModelError
from streamai.kernels import lm
from streamai.train import teacher
from streamai.train.checkpoint import Checkpoint
from streamai.train.data import batch, sequences, vocabulary
from streamai.train.distil import DistilledCrossEntropy, loss_from, store, stretches
from streamai.train.fit import Recipe, fit
from streamai.train.model import EventLM, Shape

QUIET = Console(quiet=True)


def made(users=20, most=60, items=23, seed=2):
    """Walks over a ring of items with jumps, so that there is something to learn."""
    r = np.random.default_rng(seed)
    rows = []
    for u in range(users):
        at = r.integers(items)
        for t in range(r.integers(3, most)):
            at = (at + 1) % items if r.random() < 0.8 else r.integers(items)
            rows.append((f"u{u}", str(at), 1, int(t * 10**9 + r.integers(10**9))))
    table = pl.DataFrame(rows, ["user_id", "item_id", "kind", "event_ts_ns"], orient="row")
    vocab = vocabulary(table["item_id"])
    return sequences(table, vocab), vocab


def teacher_of(vocab, window=16, time=True):
    torch.manual_seed(1)
    shape = teacher.TeacherShape(len(vocab), d=16, layers=2, heads=2, mlp=32, window=window)
    model = teacher.Teacher(shape, 0.1, time)
    with torch.no_grad():
        for block in model.blocks:
            block.position.normal_()
            block.time_bias.normal_()
    return model.eval()


def test_attention_is_softmax_with_biases_of_distance_and_time():
    seq, vocab = made()
    model = teacher_of(vocab)
    b = batch(seq, seq.start[:1], np.array([7]), len(vocab))
    with torch.no_grad():
        got = model(b.token, b.kind, b.gap)[0, :7].numpy()
    w = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    table = np.concatenate([w["item"], w["unknown"]])
    x = table[b.token[0, :7]] + w["kind_emb"][b.kind[0, :7]] + w["gap_emb"][b.gap[0, :7]]
    at_ms = np.cumsum([2 ** ((g - 1) / 2) - 1 if g else 0.0 for g in b.gap[0, :7].tolist()])
    rms = lambda v: v / np.sqrt((v * v).mean(-1, keepdims=True) + 1e-6)  # noqa: E731
    silu = lambda v: v / (1 + np.exp(-v))  # noqa: E731
    for k in range(2):
        p = {n.split(".")[2]: v for n, v in w.items() if n.startswith(f"blocks.{k}.")}
        q, key, value = (rms(x) @ w[f"blocks.{k}.{n}.weight"].T for n in "qkv")
        out = np.zeros_like(x)
        for h in range(2):
            cut = slice(8 * h, 8 * h + 8)
            for i in range(7):
                score = []
                for j in range(i + 1):
                    span = at_ms[i] - at_ms[j]
                    bucket = 0 if span <= 0 else min(63, 1 + int(2 * np.log2(1 + span)))
                    bias = p["position"][i - j, h] + p["time_bias"][bucket, h]
                    score.append(q[i, cut] @ key[j, cut] / np.sqrt(8) + bias)
                share = np.exp(score) / np.exp(score).sum()
                out[i, cut] = share @ value[: i + 1, cut]
        x = x + out @ w[f"blocks.{k}.out.weight"].T
        f, g = (rms(x) @ w[f"blocks.{k}.{n}.weight"].T for n in ("gate", "up"))
        x = x + (silu(f) * g) @ w[f"blocks.{k}.down.weight"].T
    assert got == pytest.approx(rms(x) * w["final_gain"], abs=2e-4)


def test_time_between_is_of_the_gaps_scale():
    gap = torch.tensor([[0] + [int(lm.gap_bucket(int(t * 1e6))) for t in (3, 0, 1000, 86_400_000)]])
    between = teacher.time_between(gap)[0]
    assert (torch.diagonal(between) == 0).all() and between[2, 1] == 0
    assert [int(between[i, i - 1]) for i in (1, 3, 4)] == [int(gap[0, i]) for i in (1, 3, 4)]
    assert (between[4, :4] >= between[4, 3]).all() and (between.triu(1) == 0).all()


def test_a_teacher_is_read_back_and_damage_is_said(tmp_path):
    seq, vocab = made()
    model = teacher_of(vocab)
    teacher.save(tmp_path / "t", model, {"ndcg@10": 0.5})
    again, facts = teacher.load(tmp_path / "t")
    b = batch(seq, seq.start[:3], np.array([5, 6, 7]), len(vocab))
    with torch.no_grad():
        assert torch.equal(model(b.token, b.kind, b.gap), again(b.token, b.kind, b.gap))
    assert facts == {"ndcg@10": 0.5} and again.shape == model.shape
    (tmp_path / "t").write_bytes(b"PK nothing")
    with pytest.raises(ModelError, match="not a teacher"):
        teacher.load(tmp_path / "t")
    with pytest.raises(ModelError, match="window is 16"):
        model(torch.zeros(1, 17, dtype=torch.long), torch.zeros(1, 17, dtype=torch.long), None)


@pytest.mark.parametrize("n, window", [(5, 16), (16, 16), (17, 16), (100, 16), (31, 30)])
def test_every_event_is_asked_about_once_with_as_long_a_context_as_there_is(n, window):
    seq, _ = made(users=3)
    seq = type(seq)(np.array([0, n]), *(np.zeros(n, a.dtype) for a in (seq.token, seq.kind, seq.gap)),
                    np.zeros((n, 0)), np.arange(n), ["u"])  # fmt: skip
    first, length, skip = stretches(seq, window)
    asked = np.concatenate([np.arange(f + s, f + le) for f, le, s in zip(first, length, skip)])
    assert asked.tolist() == list(range(n)) and (length <= window).all()
    for f, s in zip(first, skip):
        assert s >= min(f + s, window // 2)  # half a window before each, or all there is


def test_answers_are_the_teachers_chances(tmp_path):
    seq, vocab = made()
    model = teacher_of(vocab)
    store([model], seq, tmp_path, {"name": "t"}, QUIET, k=6)
    ids, logs = (np.load(tmp_path / f"{n}.npy") for n in ("ids", "logs"))
    assert ids.shape == logs.shape == (seq.events, 6) and ids.dtype == np.uint16
    b = batch(seq, seq.start[4:5], np.array([3]), len(vocab))
    with torch.no_grad():
        q = model(b.token, b.kind, b.gap)[0, 2]
        chance = torch.softmax(q @ model.item.t() + model.bias, -1).numpy()
    at = int(seq.start[4]) + 2
    best = np.argsort(-chance)[:6]
    assert ids[at].tolist() == best.tolist()
    assert np.exp(logs[at].astype("f8")) == pytest.approx(chance[best], rel=3e-3)
    assert json.loads((tmp_path / "about.json").read_text())["teacher"] == {"name": "t"}
    other, _ = made(seed=9)
    with pytest.raises(ModelError, match="asked about"):
        loss_from(tmp_path, other)
    with pytest.raises(ModelError, match="no answers"):
        loss_from(tmp_path / "nowhere", seq)


def test_the_loss_is_as_its_formula_and_so_is_its_gradient():
    torch.manual_seed(4)
    n, V, d, k, alpha = 40, 29, 8, 5, 0.3
    h, e, c = (torch.randint(-8, 9, s).float() / 8 for s in ((n, d), (V, d), (V,)))  # exact in bfloat16
    h, e, c = (x.requires_grad_() for x in (h, e, c))
    target = torch.randint(0, V, (n,))
    taught = torch.softmax(torch.randn(n, V) * 2, -1)
    chance, ids = taught.topk(k, -1)
    chance = chance.float()
    ours = DistilledCrossEntropy.apply(h, e, c, target, ids.numpy().astype("i4"), chance.numpy(), alpha)
    logs = torch.log_softmax(h @ e.t() + c, -1)
    near = logs.gather(1, ids)
    rest = 1 - chance.sum(1)
    left = torch.log1p(-near.exp().sum(1))
    exact = (
        -alpha * logs.gather(1, target[:, None])[:, 0] - (1 - alpha) * ((chance * near).sum(1) + rest * left)
    ).mean()
    assert ours.item() == pytest.approx(exact.item(), rel=1e-2)
    for a, b in zip(torch.autograd.grad(ours, (h, e, c)), torch.autograd.grad(exact, (h, e, c))):
        assert (a - b).norm() < 0.02 * b.norm()


def test_a_student_of_a_good_teacher_learns_more_than_by_itself(tmp_path):
    """The teacher is the truth itself: chances of the walk that made the events."""
    seq, vocab = made(users=30, most=25)
    V = len(vocab)
    number = {int(name): i for i, name in enumerate(vocab)}
    follows = np.array([number[(int(name) + 1) % 23] for name in vocab])

    class Truth:
        shape, bias = type("S", (), {"vocabulary": V, "window": 16}), torch.zeros(V)

        def __call__(self, token, kind, gap, side):
            chance = torch.full((*token.shape, V), 0.2 / V)
            chance.scatter_(-1, torch.from_numpy(follows)[token.clamp(max=V - 1)][..., None], 0.8 + 0.2 / V)
            return chance.log()

        def items(self):
            return torch.eye(V)

        def eval(self):
            return self

    store([Truth()], seq, tmp_path, {}, QUIET, k=8)
    loss_of, _ = loss_from(tmp_path, seq)
    apart = {}
    for name, loss in (("alone", None), ("distilled", loss_of)):
        torch.manual_seed(0)
        student = EventLM(Shape(V, 16, 1), 0.0)
        fit(student, seq, Recipe(epochs=6, rate=5e-3, batch=8), console=QUIET, loss_of=loss)
        b = batch(seq, seq.start[:-1], seq.lengths(), V)
        with torch.no_grad():
            logs = torch.log_softmax(
                student(b.token, b.kind, b.gap, b.side) @ student.item.t() + student.bias, -1
            )
        apart[name] = (
            -logs.gather(-1, torch.from_numpy(follows)[b.token.clamp(max=V - 1)][..., None]).mean().item()
        )
    assert apart["distilled"] < apart["alone"]


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path):
    seq, vocab = made()
    recipe = Recipe(epochs=4, rate=5e-3, batch=8, precision="f32")

    def model():
        torch.manual_seed(0)
        return EventLM(Shape(len(vocab), 16, 1), 0.2)

    whole = model()
    scores = iter([0.1, 0.4, 0.3, 0.2])
    records = fit(whole, seq, recipe, lambda: {"ndcg@10": next(scores)}, QUIET)
    assert [r["epoch"] for r in records] == [1, 2, 3, 4]
    calls = iter([0.1, 0.4])

    def until_killed():
        return {"ndcg@10": next(calls)}  # StopIteration in the third epoch

    path = tmp_path / "c"
    with pytest.raises(StopIteration):
        fit(model(), seq, recipe, until_killed, QUIET, Checkpoint(path, "run"))
    torch.manual_seed(99)  # another process has other numbers
    rest, again = iter([0.3, 0.2]), EventLM(Shape(len(vocab), 16, 1), 0.2)
    fit(again, seq, recipe, lambda: {"ndcg@10": next(rest)}, QUIET, Checkpoint(path, "run"))
    for a, b in zip(whole.parameters(), again.parameters()):
        assert torch.equal(a, b)  # both are the second epoch's, which was the best
    assert not path.exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    seq, vocab = made()
    model = EventLM(Shape(len(vocab), 16, 1))
    stop = iter([{"ndcg@10": 0.1}])
    with pytest.raises(StopIteration):
        fit(model, seq, Recipe(epochs=2), lambda: next(stop), QUIET, Checkpoint(tmp_path / "c", "one"))
    with pytest.raises(ModelError, match="checkpoint of one"):
        fit(model, seq, Recipe(epochs=2), None, QUIET, Checkpoint(tmp_path / "c", "two"))
    (tmp_path / "c").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="not a checkpoint"):
        fit(model, seq, Recipe(epochs=2), None, QUIET, Checkpoint(tmp_path / "c", "one"))


def test_patience_ends_a_training_and_the_best_epoch_is_kept():
    seq, vocab = made()
    model = EventLM(Shape(len(vocab), 16, 1))
    seen, scores = [], iter([0.1, 0.3, 0.2, 0.1, 0.9])

    def validate():
        seen.append(model.item.detach().clone())
        return {"ndcg@10": next(scores)}

    assert len(fit(model, seq, Recipe(epochs=9, patience=2), validate, QUIET)) == 4
    assert torch.equal(model.item, seen[1])

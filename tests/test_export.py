"""Export: torch and the served kernel agree, in floats, in 8 bits and in halves, or nothing is written."""

import numpy as np
import polars as pl
import pytest
import torch

from streamai.errors import ModelError
from streamai.model import weights
from streamai.train.data import sequences, vocabulary
from streamai.train.export import check, export, served
from streamai.train.model import EventLM, Shape, in_int8


@pytest.fixture(scope="module")
def small():
    """A vocabulary of 40 items and the sequences of 12 users, some of whose items are outside it."""
    r = np.random.default_rng(7)
    n = 900
    table = pl.DataFrame({
        "user_id": [f"u{k}" for k in r.integers(0, 12, n)], "item_id": [str(k) for k in r.integers(0, 45, n)],
        "kind": r.integers(1, 5, n), "event_ts_ns": np.cumsum(r.integers(1, 10**10, n)),
    })  # fmt: skip
    vocab = vocabulary(table["item_id"])[:40]
    return vocab, sequences(table, vocab)


def lm_of(vocab, time=True, d=16):
    torch.manual_seed(3)
    model = EventLM(Shape(len(vocab), d, 2), time=time)
    with torch.no_grad():
        model.gap_emb.normal_(0, 0.2)
        model.kind_emb.normal_(0, 0.2)
    return model


@pytest.mark.parametrize("time", [True, False])
def test_torch_and_kernel_agree_and_export_reads_back(small, tmp_path, time):
    vocab, seq = small
    model = lm_of(vocab, time)
    path = tmp_path / "w"
    digest = export(path, model, "clicks", seq, vocabulary=vocab, plan="0" * 16, metrics={"loss": 1.0})
    back = weights.read(path)
    assert back.digest == digest and back.vocabulary == vocab and back.header["heads"] == []
    assert back.header["metrics"]["kernel_difference"] < 1e-4
    # a model without time ignores the gaps that the sequences carry
    assert check(model, back, seq) < 1e-4


@pytest.mark.parametrize(
    "name", ["item", "Wg", "cw", "lam", "Wo", "W1", "W2", "final_gain", "kind_emb", "gap_w"]
)
def test_export_refuses_when_the_kernel_disagrees(small, tmp_path, name):
    vocab, seq = small
    model = lm_of(vocab)
    arrays = model.arrays()
    arrays[name] = arrays[name] + np.float32(0.02)
    with pytest.raises(ModelError, match="nothing is exported"):
        export(tmp_path / "w", model, "clicks", seq, vocabulary=vocab, arrays=arrays)
    assert not list(tmp_path.iterdir())


def test_export_refuses_a_wrong_vocabulary(small, tmp_path):
    vocab, seq = small
    model = lm_of(vocab)
    with pytest.raises(ModelError, match="item ids"):
        export(tmp_path / "w", model, "clicks", seq, vocabulary=vocab[:-1])


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("d", [32, 64])
def test_an_int8_model_is_served_as_torch_sees_it(small, tmp_path, d, halves):
    vocab, seq = small
    model = lm_of(vocab, d=d)
    model.int8, model.halves = True, halves
    export(tmp_path / "w", model, "clicks", seq, vocabulary=vocab)
    back = weights.read(tmp_path / "w")
    assert back.int8 and back.halves == halves and "Wg" not in back.arrays and "item" not in back.arrays
    assert back.header["metrics"]["kernel_difference"] < 0.01
    plain = tmp_path / "f"
    model.int8 = model.halves = False
    export(plain, model, "clicks", seq, vocabulary=vocab)
    assert (tmp_path / "w").stat().st_size < 0.62 * plain.stat().st_size  # tables of unknown items, gaps stay
    # what the 8 bits cost is of another size than what torch and kernel differ by
    place = (seq.start[:1], seq.lengths()[:1])
    apart = served(back, seq, *place)[0] - served(weights.read(plain), seq, *place)[0]
    assert 0.005 < np.abs(apart).mean() < 0.1


@pytest.mark.parametrize("name", ["item_s", "Wg_q", "Wo_s", "W1_q", "W2_s", "final_gain"])
def test_export_refuses_an_int8_model_that_is_another(small, tmp_path, name):
    vocab, seq = small
    model = lm_of(vocab, d=32)
    model.int8 = True
    arrays = model.arrays()
    other = np.roll(arrays[name], 1, 2) if name.endswith("_q") else arrays[name] * np.float32(1.1)
    arrays[name] = other
    with pytest.raises(ModelError, match="nothing is exported"):
        export(tmp_path / "w", model, "clicks", seq, vocabulary=vocab, arrays=arrays)
    assert not list(tmp_path.iterdir())


def test_an_int8_file_is_a_model_to_go_on_from(small, tmp_path):
    vocab, seq = small
    model = lm_of(vocab)
    model.int8 = True
    export(tmp_path / "w", model, "clicks", seq, vocabulary=vocab)
    again = EventLM.of(weights.read(tmp_path / "w"))
    again.int8 = True
    export(tmp_path / "v", again, "clicks", seq, vocabulary=vocab)
    first, second = weights.read(tmp_path / "w"), weights.read(tmp_path / "v")
    for name in ("Wg_q", "Wo_q", "W1_q", "W2_q", "item_q"):
        assert (first.arrays[name] == second.arrays[name]).all()


def test_a_low_rank_item_table_is_multiplied_out(small, tmp_path):
    vocab, seq = small
    model = lm_of(vocab)
    r = np.random.default_rng(0)
    u, p = r.standard_normal((len(vocab), 4)).astype("f4"), r.standard_normal((4, 16)).astype("f4")
    with torch.no_grad():
        model.item.copy_(torch.from_numpy(u @ p))
    header = {"kind": "clicks", "d": 16, "layers": 2, "mlp": 48, "side": 0, "time": True, "vocabulary": vocab}
    arrays = model.arrays()
    del arrays["item"]
    weights.write(tmp_path / "w", header | {"rank": 4}, arrays | {"item_u": u, "item_p": p})
    file = weights.read(tmp_path / "w")
    assert np.allclose(file.items(), u @ p, atol=1e-5) and check(model, file, seq) < 1e-4
    whole, steps = in_int8(u, 1)
    weights.write(
        tmp_path / "q", header | {"rank": 4, "int8": True},
        {n: a for n, a in arrays.items() if n not in ("Wg", "Wo", "W1", "W2")}
        | {f"{n}_{x}": part for n in ("Wg", "Wo", "W1", "W2") for x, part in zip("qs", in_int8(arrays[n], 1))}
        | {"item_u_q": whole, "item_u_s": steps, "item_p": p},
    )  # fmt: skip
    assert np.allclose(weights.read(tmp_path / "q").items(), (whole * steps[:, None]) @ p, atol=1e-5)


@pytest.mark.parametrize("change, error", [
    ({"int8": 1}, "int8 is 1"), ({"state": "f3"}, "state is 'f3'"), ({"rank": 99}, "rank is 99"),
    ({"rank": 4}, "no array item_p"), ({"int8": True}, "no array Wg_q"),
])  # fmt: skip
def test_flags_that_do_not_fit_are_refused(small, tmp_path, change, error):
    vocab, _ = small
    header = {"kind": "clicks", "d": 16, "layers": 2, "mlp": 48, "side": 0, "time": True, "vocabulary": vocab}
    weights.write(tmp_path / "w", header | change, lm_of(vocab).arrays())
    with pytest.raises(ModelError, match=error):
        weights.read(tmp_path / "w")

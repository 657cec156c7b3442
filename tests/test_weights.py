"""Model files: what is written is read; damage of every kind is refused; nothing is executed."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai.errors import ModelError
from streamai.model import weights
from tests.test_lm import random_weights


def clicks(items=20, d=32, head=True, features=3, hidden=24):
    """Header and arrays of a click model."""
    r = np.random.default_rng(5)
    arrays = random_weights(d=d, layers=2, m=48, sides=2, items=items)

    def g(*shape):
        return r.standard_normal(shape).astype("f4")

    if head:
        arrays |= {"head_mean": g(8), "head_inv": g(8), "head_w": g(8), "head_b": g(1), "head_W2": g(hidden)}
        arrays |= {"head_Wz": g(8, hidden), "head_bu": g(hidden), "head_Wu": g(d + features, hidden)}
        arrays |= {"feat_mean": g(features), "feat_inv": g(features)}
    ids = [f"item-{i}" for i in range(items - 1)] + ["Käse 🧀"]
    header = {"kind": "clicks", "d": d, "layers": 2, "mlp": 48, "side": 2, "plan": "", "vocabulary": ids}
    return header, arrays


def market(sides=8, rows=0):
    """Header and arrays of a market model with a signal head of two horizons."""
    header, arrays = clicks(head=False)
    arrays |= random_weights(d=32, layers=2, m=48, sides=sides, items=20)
    r = np.random.default_rng(6)
    arrays |= {"sig_W1": r.random((32 + 3 + rows, 20), "f4"), "sig_b1": r.random(20, "f4")}
    arrays |= {"sig_W2": r.random((20, 6), "f4"), "sig_b2": r.random(6, "f4"), "sig_temp": np.ones(2, "f4")}
    arrays |= {"feat_mean": np.zeros(3, "f4"), "feat_inv": np.ones(3, "f4")}
    del header["vocabulary"]
    return header | {"kind": "market", "side": sides, "horizons": ["1s", "10ev"]}, arrays


def test_what_is_written_is_read(tmp_path):
    header, arrays = clicks(hidden=16)
    digest = weights.write(tmp_path / "a.model", header, arrays)
    again = weights.write(tmp_path / "b.model", header, arrays)
    assert digest == again and (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    back = weights.read(tmp_path / "a.model")
    assert back.digest == digest and len(digest) == 16
    assert back.kind == "clicks" and back.vocabulary == header["vocabulary"]
    assert back.arrays.keys() == arrays.keys()
    for name, a in arrays.items():
        b = back.arrays[name]
        assert b.dtype == a.dtype and b.shape == a.shape and b.tobytes() == a.tobytes()
        assert b.flags.c_contiguous and b.flags.writeable and type(b) is np.ndarray
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "b.model"]  # no drafts left
    back.arrays["item"][:] = 0  # pages are private: the file stays
    assert weights.read(tmp_path / "a.model").digest == digest


def test_hidden_units_are_padded(tmp_path):
    header, arrays = clicks(hidden=24)
    weights.write(tmp_path / "m", header, arrays)
    back = weights.read(tmp_path / "m").arrays
    assert back["head_W2"].shape == (32,) and back["head_Wu"].shape == (35, 32)
    assert (back["head_Wz"][:, :24] == arrays["head_Wz"]).all() and not back["head_Wz"][:, 24:].any()


@pytest.mark.parametrize("rows", [0, 8])
def test_market_model(tmp_path, rows):
    header, arrays = market(rows=rows)
    weights.write(tmp_path / "m", header, arrays)
    back = weights.read(tmp_path / "m")
    assert back.vocabulary == [] and back.arrays["sig_W1"].shape == (35 + rows, 32)


@pytest.mark.parametrize(
    "name, change, word",
    [
        ("Wg", lambda a: a[:, :, :-1], "Wg"),
        ("item", lambda a: a[:-1], "bias"),
        ("bias", lambda a: a.astype("i4"), "bias"),
        ("lam", lambda a: -a, "negative"),
        ("Wo", lambda a: np.where(a > 2, np.nan, a) * np.float32(np.nan), "NaN"),
        ("head_Wu", lambda a: a[1:], "head_Wu"),
        ("head_mean", lambda a: a[:7], "head_mean"),
        ("feat_inv", lambda a: a[:2], "feat_inv"),
        ("W2", None, "no array W2"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, name, change, word):
    header, arrays = clicks()
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    weights.write(tmp_path / "m", header, arrays)
    with pytest.raises(ModelError, match=word):
        weights.read(tmp_path / "m")


@pytest.mark.parametrize(
    "change, word",
    [
        ({"d": 40}, "multiples of 16"),
        ({"d": 10**9}, "header d"),
        ({"d": True}, "header d"),
        ({"layers": "2"}, "header layers"),
        ({"side": 3}, "header side"),
        ({"vocabulary": ["a"]}, "1 item ids for 20 rows"),
    ],
)
def test_wrong_headers_are_refused(tmp_path, change, word):
    header, arrays = clicks()
    weights.write(tmp_path / "m", header | change, arrays)
    with pytest.raises(ModelError, match=word):
        weights.read(tmp_path / "m")


@pytest.mark.parametrize(
    "change, word",
    [({"horizons": None}, "horizons"), ({"horizons": ["1s"]}, "sig_W2"), ({"side": 0}, "Wside")],
)
def test_wrong_market_headers_are_refused(tmp_path, change, word):
    header, arrays = market()
    weights.write(tmp_path / "m", header | change, arrays)
    with pytest.raises(ModelError, match=word):
        weights.read(tmp_path / "m")


def test_signal_shapes_are_checked(tmp_path):
    for name, change in (("sig_W1", lambda a: a[:-1]), ("sig_temp", lambda a: 0 * a)):
        header, arrays = market()
        weights.write(tmp_path / "m", header, arrays | {name: change(arrays[name])})
        with pytest.raises(ModelError, match=name):
            weights.read(tmp_path / "m")


def test_what_cannot_be_written(tmp_path):
    header, arrays = clicks()
    with pytest.raises(ModelError, match="kind"):
        weights.write(tmp_path / "m", header | {"kind": "other"}, arrays)
    with pytest.raises(ModelError, match="float64"):
        weights.write(tmp_path / "m", header, arrays | {"item": arrays["item"].astype("f8")})
    assert not list(tmp_path.iterdir())


def _file(header: dict | bytes, body: bytes = b"", magic=b"STREAMAI", version=1, size=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    head = struct.pack("<8sIQ", magic, version, len(text) if size is None else size) + text
    return head + bytes(-len(head) % 64) + body


DAMAGED = [
    (b"", "model file"),
    (b"STREAM", "6 bytes"),
    (_file({"kind": "clicks"}, magic=b"PK345678"), "begins with"),
    (_file({"kind": "clicks"}, version=9), "version 9"),
    (_file({"kind": "clicks"}, size=2**63), "damaged"),
    (_file(b"{nope"), "not JSON"),
    (_file(b"\xff\xfe"), "not JSON"),
    (_file(b"[" * 100_000), "JSON"),
    (_file([1]), "kind"),
    (_file({"kind": "clicks"}), "arrays"),
    (_file({"kind": "clicks", "arrays": {"a": 3}}), "arrays"),
    (_file({"kind": "clicks", "arrays": {"a": {"dtype": "O", "shape": [1], "offset": 0}}}), "array a"),
    (_file({"kind": "clicks", "arrays": {"a": {"dtype": "<f4", "shape": [-1], "offset": 0}}}), "array a"),
    (_file({"kind": "clicks", "arrays": {"a": {"dtype": "<f4", "shape": [1], "offset": 4}}}), "array a"),
    (_file({"kind": "clicks", "arrays": {"a": {"dtype": "<f4", "shape": [9], "offset": 0}}}), "cut short"),
    (_file({"kind": "clicks", "arrays": {"a": {"dtype": "<f4", "shape": [2**40], "offset": 0}}}), "cut"),
    (_file({"kind": "clicks", "arrays": {"vocabulary_at": {"dtype": "<i8", "shape": [1], "offset": 0}}},
           bytes(8)), "vocabulary"),
]  # fmt: skip


@pytest.mark.parametrize("content, word", DAMAGED)
def test_damaged_files_are_refused(tmp_path, content, word):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelError, match=word):
        weights.read(tmp_path / "m")


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match="no.model"):
        weights.read(tmp_path / "no.model")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_file_cut_or_changed_anywhere_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("w") / "m"
    digest = weights.write(path, *clicks(items=5))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, min(3000, len(content) - 1)))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        assert weights.read(path).digest != digest


def test_agreement():
    a = [np.ones((3, 4), "f4"), np.zeros((0, 4), "f4")]
    assert weights.check_agreement("m", a, a, 1e-4) == 0
    near = [a[0] + np.float32(1e-5), a[1]]
    assert 0 < weights.check_agreement("m", near, a, 1e-4) < 1e-4
    for wrong in (a[0] + np.float32(1e-2), a[0] * np.float32(np.nan)):
        with pytest.raises(ModelError, match="differ"):
            weights.check_agreement("m", [wrong, a[1]], a, 1e-4)
    with pytest.raises(ModelError, match="torch"):
        weights.check_agreement("m", [a[0][:2], a[1]], a, 1e-4)

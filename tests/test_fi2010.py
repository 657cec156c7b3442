"""The FI-2010 protocol on files of its layout that the test makes."""

import json

import numpy as np
import pytest

from streamai import cli
from streamai.errors import InputError, SettingsError
from streamai.train import fi2010
from streamai.train.market import DOWN, FLAT, UP


def write(path, stretches=(160, 140), seed=0):
    """A file of some stocks and days: the first feature tells the label of 10 events, mostly."""
    r = np.random.default_rng(seed)
    columns = []
    for k, n in enumerate(stretches):
        x = r.standard_normal((144, n))
        x[0] = 20.0 * k + np.cumsum(r.choice([-0.01, 0.01], n))  # the first ask price
        labels = np.repeat(np.where(x[1] > 0.4, 1, np.where(x[1] < -0.4, 3, 2))[None], 5, 0)
        labels[3:] = r.integers(1, 4, (2, n))
        columns.append(np.concatenate([x, labels]))
    np.savetxt(path, np.concatenate(columns, 1), fmt="%.6f")
    return path


def test_files_are_read_and_cut_at_their_seams(tmp_path):
    data = fi2010.load([write(tmp_path / "a"), write(tmp_path / "b", (50,), 1)])
    assert len(data) == 350 and np.unique(data.start).tolist() == [0, 160, 300]
    assert set(np.unique(data.label)) == {DOWN, FLAT, UP}
    first = np.loadtxt(tmp_path / "a")
    up = np.flatnonzero(first[144] == 1)[0]
    assert data.label[up, 0] == UP and data.x[5, 3] == pytest.approx(first[3, 5])
    fit, tail = fi2010.split(data)
    assert not set(fit) & set(tail) and set(tail) == {*range(128, 160), *range(272, 300), *range(340, 350)}
    assert max(i for i in fit if i < 160) == 117  # ten snapshots before the part that chooses


def test_damage_is_said(tmp_path):
    (tmp_path / "words").write_text("no numbers\n")
    np.savetxt(tmp_path / "few", np.ones((148, 5)))
    np.savetxt(tmp_path / "labels", np.ones((149, 5)) * 4)
    for name, error in (("words", "not a FI-2010 file"), ("few", "148 rows"), ("labels", "other labels")):
        with pytest.raises(InputError, match=error):
            fi2010.load([tmp_path / name])
    data = fi2010.load([write(tmp_path / "a")])
    with pytest.raises(SettingsError, match="inputs"):
        fi2010.run(data, data, 50, ("majority",))


def test_every_model_is_judged_and_finds_what_is_there(tmp_path, capsys):
    train, test = write(tmp_path / "train", (1500, 1200)), write(tmp_path / "test", (500, 300), 3)
    words = ["fi2010", "--train", str(train), "--test", str(test), "--json"]
    assert cli.main(words) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert len(rows) == 5 * 6
    by = {(r["horizon"], r["model"]): r["macro_f1"] for r in rows}
    for model in ("logistic", "lightgbm", "bin-ctabl", "student"):
        assert by[10, model] > by[10, "majority"] + 0.2, model
        assert by[50, model] < 0.45, "labels of 50 and 100 events are noise"
    assert cli.main([*words[:-1], "--models", "majority", "persistence"]) == 0
    assert "800 snapshots, 40 inputs" in capsys.readouterr().out

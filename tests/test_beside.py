"""Models trained to be measured beside the flow: a GRU and the student's attention twin."""

import json

import numpy as np
import pytest
import torch

from streamai import cli
from streamai.errors import SettingsError
from streamai.train.beside import model_of, outputs
from streamai.train.data import batch
from streamai.train.model import EventLM, Shape
from tests.test_distil import made
from tests.test_train_flow import made as made_files  # noqa: F401  (a fixture)


def test_they_are_of_the_students_size():
    student = sum(p.numel() for p in EventLM(Shape(100)).blocks.parameters())
    for kind in ("gru", "twin"):
        assert 0.85 < model_of(kind, 100, 0.1, True).body_parameters() / student < 1.05, kind
    with pytest.raises(SettingsError, match="gru, twin"):
        model_of("lstm", 100, 0.1, True)


@pytest.mark.parametrize("kind", ["gru", "twin"])
def test_outputs_are_those_after_each_asked_row(kind):
    seq, vocab = made(users=6, most=90)
    torch.manual_seed(0)
    model = model_of(kind, len(vocab), 0.0, True).eval()
    rows = np.array([3, 100, 7, seq.row[-1]])
    with torch.no_grad():
        got = outputs(model, seq, rows)
        for row, q in zip(rows, got):
            at = int(np.flatnonzero(seq.row == row)[0])
            key = int(np.searchsorted(seq.start, at, side="right")) - 1
            first = max(int(seq.start[key]), at + 1 - (64 if kind == "twin" else 200))
            b = batch(seq, np.array([first]), np.array([at + 1 - first]), len(vocab))
            assert model(b.token, b.kind, b.gap)[0, at - first].numpy() == pytest.approx(q, abs=1e-4)


def test_evaluate_trains_and_judges_them(made_files, capsys):  # noqa: F811
    words = ["evaluate", "agents.recommend", "--events", str(made_files / "clicks.parquet")]
    words += ["--trained-elsewhere", "--beside", "gru", "twin", "--epochs", "1", "--sample", "300", "--json"]
    assert cli.main(words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("gru", "twin", "VMIS-kNN", "STAN", "popularity 1d"):
        assert 0 < report["models"][name]["all"]["hr@50"] <= 1, name

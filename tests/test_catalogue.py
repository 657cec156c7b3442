"""Items: files, filters, an index that keeps its meaning, and what is refused."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamai.catalogue import Catalogue
from streamai.errors import CatalogueError

CSV = """id,title,price,category,available,text
i1,"Lamp, brass",19.5,home,true,A lamp
i2,Stool,,home,0,
7,Kéttle,12,kitchen,,Boils
"""


def csv(tmp_path, text, name="items.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(tmp_path):
    c = Catalogue.load(csv(tmp_path, CSV))
    assert c.ids == ["i1", "i2", "7"] and len(c) == c.n == 3
    assert c.titles == ["Lamp, brass", "Stool", "Kéttle"]
    assert c.available.tolist() == [1, 0, 1] + [0] * 13
    assert c.price[[0, 2]].tolist() == [19.5, 12] and math.isnan(c.price[1]) and math.isnan(c.price[3])
    assert [c.index(i) for i in ("i1", "i2", "7", "i3", "")] == [0, 1, 2, -1, -1]


def test_parquet_equals_csv(tmp_path):
    path = tmp_path / "items.parquet"
    pq.write_table(
        pa.table(
            {
                "id": ["i1", "i2", "7"],
                "title": ["Lamp, brass", "Stool", "Kéttle"],
                "price": [19.5, None, 12.0],
                "category": ["home", "home", "kitchen"],
                "available": [True, False, None],
                "text": ["A lamp", None, "Boils"],
            }
        ),
        path,
    )
    assert Catalogue.load(path).digest == Catalogue.load(csv(tmp_path, CSV)).digest


def test_only_id_is_a_must_and_may_be_a_number(tmp_path):
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"id": [3, 1]}), path)
    c = Catalogue.load(path)
    assert c.ids == ["3", "1"] and c.available[:2].tolist() == [1, 1]
    assert c.digest == Catalogue.of_ids(["3", "1"]).digest != Catalogue.of_ids(["1", "3"]).digest


def test_ids_are_kept_as_json_text():
    c = Catalogue.of_ids(['say "hi"\n', "é"])
    cut = [c.id_bytes[a:b].tobytes() for a, b in zip(c.id_at, c.id_at[1:], strict=False)]
    assert cut == [b'say \\"hi\\"\\n', "é".encode()]


def test_an_index_never_changes_its_meaning():
    before = Catalogue.of_ids(["a", "b", "c"])
    after = Catalogue(["d", "b"], titles=["D", "B"], price=[4, 2]).extend(before.ids)
    assert after.ids == ["a", "b", "c", "d"]
    assert after.available[:4].tolist() == [0, 1, 0, 1]
    assert after.titles == ["", "B", "", "D"] and after.price[3] == 4
    again = Catalogue(["d", "b"], titles=["D", "B"], price=[4, 2]).extend(after.ids)
    assert again.digest == after.digest != before.digest
    back = Catalogue.of_ids(["a", "b", "c"]).extend(after.ids)
    assert back.ids == after.ids and back.available[:4].tolist() == [1, 1, 1, 0]


def test_everything_is_in_the_digest():
    base = Catalogue(["a"], ["t"], [1.0], ["c"], [1], ["x"])
    for other in (
        Catalogue(["b"], ["t"], [1.0], ["c"], [1], ["x"]),
        Catalogue(["a"], ["u"], [1.0], ["c"], [1], ["x"]),
        Catalogue(["a"], ["t"], [2.0], ["c"], [1], ["x"]),
        Catalogue(["a"], ["t"], [1.0], ["d"], [1], ["x"]),
        Catalogue(["a"], ["t"], [1.0], ["c"], [0], ["x"]),
        Catalogue(["a"], ["t"], [1.0], ["c"], [1], ["y"]),
    ):
        assert other.digest != base.digest
    assert len(base.digest) == 16


def test_many_items():
    ids = [f"item {i}" for i in range(5000)]
    c = Catalogue.of_ids(ids)
    assert [c.index(s) for s in ids[::97]] == list(range(0, 5000, 97))
    assert c.indices([b"item 7", b"gone", b"", b"item 4999"]).tolist() == [7, -1, -1, 4999]
    assert np.count_nonzero(c.table) == 5000 and len(c.table) >= 10_000
    assert Catalogue.of_ids([]).index("x") == -1


def test_token_hash_is_never_zero_and_fits_32_bits():
    assert all(0 < Catalogue.token_hash(str(i)) < 2**32 for i in range(100))
    assert Catalogue.token_hash("a") & 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title\nx\n", "no column id"),
        ("id\na\na\n", "row 1: id 'a' is there already"),
        ("id,price\na,-1\n", "row 0: price is -1.0"),
        ("id,price\na,cheap\n", "price is 'cheap'"),
        ("id,available\na,perhaps\n", "available is 'perhaps'"),
        ("id,title\na\n", "row 0: 1 fields; the header has 2"),
        ("id,title\n,x\n", "row 0: id of 0 bytes"),
    ],
)
def test_what_is_refused_says_where(tmp_path, text, says):
    with pytest.raises(CatalogueError) as e:
        Catalogue.load(csv(tmp_path, text))
    assert says in str(e.value) and "items.csv" in str(e.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CatalogueError, match="no such file"):
        Catalogue.load(tmp_path / "absent.csv")
    with pytest.raises(CatalogueError, match=r"not '\.txt'"):
        Catalogue.load(csv(tmp_path, CSV, "items.txt"))
    with pytest.raises(CatalogueError, match="not a parquet file"):
        Catalogue.load(csv(tmp_path, CSV, "items.parquet"))
    (tmp_path / "latin.csv").write_bytes("id\né\n".encode("latin-1"))
    with pytest.raises(CatalogueError, match="not a CSV in UTF-8"):
        Catalogue.load(tmp_path / "latin.csv")


def test_availability_is_another_name_of_available(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("id,availability\na,no\nb,yes\nc,\n")
    assert Catalogue.load(path).available[:3].tolist() == [0, 1, 1]
    path.write_text("id,availability,available\na,no,yes\n")
    with pytest.raises(CatalogueError, match="one of them"):
        Catalogue.load(path)

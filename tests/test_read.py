"""Files of events -> frames: names, units, zones, order, errors."""

import datetime as dt
import os
import pathlib

import numpy as np
import polars as pl
import pytest

from streamai.errors import InputError
from streamai.events import CLICKS, MARKET
from streamai.replay.mapping import POSITION_EPOCH_NS, Mapping
from streamai.replay.read import count_rows, is_recorded, read_events, scan_events, valid

DATA = pathlib.Path(os.environ.get("STREAMAI_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))
shared = pytest.mark.skipif(not DATA.exists(), reason="no shared data")

TABS = "1\t1193\t5\t978300760\n2\t661\t3\t978302109\n"


def write(tmp_path, name="t.parquet", **columns):
    path = tmp_path / name
    pl.DataFrame(columns).write_parquet(path)
    return path


def test_columns_are_renamed_and_typed(tmp_path):
    path = write(tmp_path, visitor=[7, 8], what=["a", "b"], t=[1, 2], price=[1, None])
    frame = read_events(path, CLICKS, ["user_id=visitor", "item_id=what", "event_ts_s=t"])
    assert frame.columns == ["user_id", "item_id", "kind", "event_ts_ns", "price", "quantity", "dwell_ms"]
    assert frame.row(0) == ("7", "a", "view", 1_000_000_000, 1.0, None, None)
    assert frame["price"].to_list() == [1.0, None]


@pytest.mark.parametrize("unit, factor", [("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)])
@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String])
def test_the_unit_is_in_the_targets_name(tmp_path, unit, factor, kind):
    path = tmp_path / "t.parquet"
    table = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "t": [1_000_000]}).with_columns(
        pl.col("t").cast(kind)
    )
    table.write_parquet(path)
    assert read_events(path, CLICKS, [f"event_ts_{unit}=t"])["event_ts_ns"][0] == 1_000_000 * factor


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_a_datetime_carries_its_unit_and_zone(tmp_path, unit):
    moment = pl.Series("t", [dt.datetime(2020, 6, 1, 12)]).cast(pl.Datetime(unit))
    plain = tmp_path / "plain.parquet"
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "t": moment}).write_parquet(plain)
    noon_utc = int(dt.datetime(2020, 6, 1, 12, tzinfo=dt.UTC).timestamp()) * 10**9
    assert read_events(plain, CLICKS, ["event_ts=t"])["event_ts_ns"][0] == noon_utc
    new_york = Mapping({"event_ts": "t"}, zone="America/New_York")
    assert read_events(plain, CLICKS, new_york)["event_ts_ns"][0] == noon_utc + 4 * 3600 * 10**9
    zoned = tmp_path / "zoned.parquet"
    table = pl.DataFrame(
        {"user_id": ["u"], "item_id": ["i"], "t": moment.dt.replace_time_zone("Europe/Berlin")}
    )
    table.write_parquet(zoned)
    assert read_events(zoned, CLICKS, new_york)["event_ts_ns"][0] == noon_utc - 2 * 3600 * 10**9


def test_a_date_and_a_time_since_midnight(tmp_path):
    path = write(tmp_path, day=[dt.date(2013, 10, 7)], time_ms=[1500], instrument=["BAC"])
    utc = int(dt.datetime(2013, 10, 7, tzinfo=dt.UTC).timestamp()) * 10**9 + 1500 * 10**6
    assert read_events(path, MARKET, ["event_ts_ms=day+time_ms"])["event_ts_ns"][0] == utc
    assert read_events(path, MARKET, ["event_ts=day"])["event_ts_ns"][0] == utc - 1500 * 10**6
    assert read_events(path, MARKET, ["event_ts_ms=2013-10-07+time_ms"])["event_ts_ns"][0] == utc
    zoned = Mapping.parse(["event_ts_ms=day+time_ms"], zone="America/New_York")
    assert read_events(path, MARKET, zoned)["event_ts_ns"][0] == utc + 4 * 3600 * 10**9


def test_numbers_are_scaled_and_constants_set(tmp_path):
    path = write(tmp_path, bid_1e4=[20_000], ask_1e4=[20_100], t=[1])
    mapping = Mapping.parse(
        ["bid=bid_1e4/10000", "ask=ask_1e4*1e-4", "event_ts_ns=t", "kind==trade"], ["instrument=X"]
    )
    row = read_events(path, MARKET, mapping).row(0, named=True)
    assert (row["instrument"], row["kind"], row["bid"]) == ("X", "trade", 2.0)
    assert row["ask"] == pytest.approx(2.01)


def test_division_rounds_once(tmp_path):
    cents = np.arange(1, 5000)
    path = write(tmp_path, instrument=["X"] * len(cents), p=cents, event_ts_ns=cents)
    frame = read_events(path, MARKET, ["price=p/10000"])
    assert (frame["price"].to_numpy() == cents / 10000).all()


def test_kinds_are_renamed_and_a_column_left_out(tmp_path):
    path = write(
        tmp_path,
        user_id=["u"] * 3,
        item_id=["i"] * 3,
        event_ts_s=[1, 2, 3],
        kind=["x", "buy", None],
        price=[1.0] * 3,
    )
    frame = read_events(path, CLICKS, Mapping.parse(["price="], kinds=["x=cart"]))
    assert frame["kind"].to_list() == ["cart", "buy", "view"]
    assert frame["price"].null_count() == 3


@pytest.mark.parametrize(
    "columns, maps, says",
    [
        ({"item_id": ["i"], "event_ts_s": [1]}, [], "--map user_id=COLUMN"),
        ({"user_id": ["u"], "item_id": ["i"], "when": [1]}, [], "--map event_ts_ms=COLUMN"),
        ({"user_id": ["u"], "item_id": ["i"], "when": [dt.datetime(2020, 1, 1)]}, [], "--map event_ts=when"),
        ({"user_id": ["u"], "item_id": ["i"], "t": [1]}, ["event_ts=t"], "does not say its unit"),
        ({"user_id": ["u"], "item_id": ["i"], "event_ts_s": [1], "event_ts_ms": [1]}, [], "both say"),
        ({"user_id": ["u"], "item_id": ["i"], "event_ts_s": [1]}, ["user_id=nobody"], "no column 'nobody'"),
        ({"user_id": [1.5], "item_id": ["i"], "event_ts_s": [1]}, [], "expected text or whole numbers"),
        ({"user_id": ["u"], "item_id": ["i"], "event_ts_s": [1]}, ["colour=x"], "no field 'colour'"),
        ({"user_id": ["u"], "item_id": ["i"], "event_ts_s": [1]}, ["kind==look"], "kind 'look' is unknown"),
        ({"user_id": ["u"], "item_id": ["i"], "event_ts_s": [1]}, ["user_id"], "expected name=value"),
        (
            {"user_id": ["u"], "item_id": ["i"], "d": ["x"], "event_ts_ms": [1]},
            ["event_ts=d+event_ts_ms"],
            "say the unit",
        ),
    ],
)
def test_what_cannot_be_told_is_an_error_that_says_what_to_write(tmp_path, columns, maps, says):
    with pytest.raises(InputError, match=says.replace("+", r"\+")):
        read_events(write(tmp_path, **columns), CLICKS, maps)


def test_a_wrong_unit_is_found_and_never_wraps(tmp_path):
    path = write(tmp_path, user_id=["u"], item_id=["i"], t=[1_600_000_000_000])
    with pytest.raises(InputError, match="Is the unit"):
        list(scan_events(path, CLICKS, ["event_ts_s=t"]))


def test_position_is_the_order_where_there_is_no_time(tmp_path):
    path = write(tmp_path, user_id=["a", "a", "b"], item_id=["x", "y", "z"], position=[0, 1, 0])
    frame = read_events(path, CLICKS, ["position=position"])
    assert frame["user_id"].to_list() == ["a", "b", "a"]
    assert frame["event_ts_ns"].to_list() == [POSITION_EPOCH_NS] * 2 + [POSITION_EPOCH_NS + 10**9]
    assert frame["position"].to_list() == [0, 0, 1]


def test_file_order_is_kept_unless_sort_is_asked(tmp_path):
    path = write(tmp_path, user_id=["a", "b", "c"], item_id=["x"] * 3, event_ts_s=[2, 1, 2])
    assert read_events(path, CLICKS)["user_id"].to_list() == ["a", "b", "c"]
    assert read_events(path, CLICKS, sort=True)["user_id"].to_list() == ["b", "a", "c"]


def test_batches_are_the_whole(tmp_path):
    n = 50_000
    path = write(tmp_path, user_id=np.arange(n) % 97, item_id=np.arange(n) % 13, event_ts_ms=np.arange(n))
    parts = list(scan_events(path, CLICKS, batch=1000))
    assert len(parts) > 10
    assert pl.concat(parts).equals(read_events(path, CLICKS))
    assert count_rows(path) == n


def test_csv_keeps_zeros_of_ids_and_marks_bad_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "user_id,item_id,event_ts,price\n007,1,2020-01-01T00:00:00Z,2.5\n8,2,2020-01-01T00:00:01Z,cheap\n9,3,,\n"
    )
    frame = read_events(path, CLICKS)
    assert frame["user_id"].to_list() == ["007", "8", "9"]
    assert frame["event_ts_ns"].to_list() == [1_577_836_800 * 10**9, 1_577_836_801 * 10**9, None]
    assert frame["price"][0] == 2.5 and np.isnan(frame["price"][1]) and frame["price"][2] is None
    assert frame.select(valid(CLICKS)).to_series().to_list() == [True, False, False]


def test_ndjson(tmp_path):
    path = tmp_path / "t.ndjson"
    path.write_text('{"user_id":"u","item_id":"i","event_ts_ms":5,"kind":"buy"}\n')
    assert read_events(path, CLICKS).row(0)[:4] == ("u", "i", "buy", 5_000_000)


@pytest.mark.parametrize(
    "name, text",
    [
        ("ratings.dat", "1::1193::5::978300760\n2::661::3::978302109\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n2,661,3.0,978302109\n"),
        ("u.data", TABS),
        ("ml.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + TABS),
    ],
)
def test_movielens_layouts_need_no_map(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    frame = read_events(tmp_path / name, CLICKS)
    assert frame["user_id"].to_list() == ["1", "2"] and frame["item_id"].to_list() == ["1193", "661"]
    assert frame["event_ts_ns"].to_list() == [978300760 * 10**9, 978302109 * 10**9]


def test_valid_follows_the_schemas_rules(tmp_path):
    path = write(
        tmp_path, instrument=["A", "A", "A", "A", None, ""], event_ts_ns=[1, 2, None, 4, 5, 6],
        bid=[1.0, 2.0, 1.0, -1.0, 1.0, 1.0],
        ask=[1.0, 1.0, 2.0, 1.0, 1.0, 1.0], side=[1.0, 0.0, 0.0, 0.0, 0.0, 2.0],
    )  # fmt: skip
    assert read_events(path, MARKET).select(valid(MARKET)).to_series().to_list() == [True] + [False] * 5


def test_valid_knows_what_a_kind_needs(tmp_path):
    path = write(
        tmp_path,
        instrument=["A", "A"],
        event_ts_ns=[1, 2],
        kind=["trade"] * 2,
        price=[1.0, 1.0],
        size=[1, None],
    )
    assert read_events(path, MARKET).select(valid(MARKET)).to_series().to_list() == [True, False]


def test_a_recorded_topic_is_told_apart(tmp_path):
    path = write(
        tmp_path, partition=[0], offset=[0], key=[b"u"], value=[b"{}"], headers=[None], kafka_ts_ms=[1]
    )
    assert is_recorded(path)
    with pytest.raises(InputError, match="recorded topic"):
        read_events(path, CLICKS)


@shared
def test_shared_movielens():
    frame = read_events(
        DATA / "ml100k_ratings.parquet", CLICKS, ["event_ts_s=timestamp"], sort=True, keep=["fold"]
    )
    assert len(frame) == 100_000 and frame["event_ts_ns"].is_sorted() and "fold" in frame.columns
    assert frame.select(valid(CLICKS).all()).item()


@pytest.mark.parametrize("name", ["t.parquet", "t.ndjson", "t.csv"])
@pytest.mark.parametrize("raw", [b"", b'{"user_id": "u"\n', bytes(range(256)) * 9])
def test_a_file_that_cannot_be_read_is_an_error_of_ours(tmp_path, name, raw):
    path = tmp_path / name
    path.write_bytes(raw)
    for read in (
        is_recorded,
        count_rows,
        lambda p: read_events(p, CLICKS),
        lambda p: list(scan_events(p, CLICKS)),
    ):
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error)


def test_times_of_1970_are_wondered_at(tmp_path, caplog):
    path = write(tmp_path, user_id=["u"], item_id=["i"], t=[1_700_000_000])
    list(scan_events(path, CLICKS, ["event_ts_s=t"]))
    assert not caplog.records
    list(scan_events(path, CLICKS, ["event_ts_ms=t"]))
    assert "all of 1970-01-20 or before. Is the unit in --map" in caplog.text

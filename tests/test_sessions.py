"""Public files of sessions: small made ones of the published layouts, good and wrong."""

from __future__ import annotations

import json

import polars as pl
import pytest

from streamai.cli import main
from streamai.errors import InputError
from streamai.events import CLICKS
from streamai.replay.read import read_events, valid
from streamai.replay.sessions import LAYOUTS, convert

YOOCHOOSE = """1,2014-04-07T10:51:09.277Z,214536502,0
2,2014-04-07T10:50:00.000Z,214536500,S
1,2014-04-07T10:54:09.868Z,214536506,0
3,yesterday,214536506,0
"""
RETAILROCKET = """timestamp,visitorid,event,itemid,transactionid
1433221332117,257597,view,355908,
1433224214164,257597,addtocart,355908,
1433221999827,992329,view,248676,
1433224214200,257597,transaction,355908,4000
1433224214300,7,ponder,1,
"""
DIGINETICA = """sessionId;userId;itemId;timeframe;eventdate
1;NA;81766;526309;2016-05-09
1;NA;31331;1031018;2016-05-09
2;NA;32118;243569;2016-05-08
"""


def converted(tmp_path, layout: str, text: str) -> list[tuple]:
    (tmp_path / "in").write_text(text)
    rows = convert(layout, tmp_path / "in", tmp_path / "out.parquet")
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert rows == len(frame) and not list(tmp_path.glob("*.part"))
    return frame.select("user_id", "item_id", "kind", "event_ts_ms").rows()


def test_yoochoose(tmp_path):
    assert converted(tmp_path, "yoochoose", YOOCHOOSE) == [
        ("2", "214536500", "click", 1396867800000),
        ("1", "214536502", "click", 1396867869277),
        ("1", "214536506", "click", 1396868049868),
        ("3", "214536506", "click", None),
    ]
    events = read_events(tmp_path / "out.parquet", CLICKS)
    assert events.select(valid(CLICKS)).to_series().to_list() == [True, True, True, False]


def test_retailrocket_s_sessions_end_after_thirty_idle_minutes(tmp_path):
    assert converted(tmp_path, "retailrocket", RETAILROCKET) == [
        ("257597-0", "355908", "view", 1433221332117),
        ("992329-0", "248676", "view", 1433221999827),
        ("257597-1", "355908", "cart", 1433224214164),
        ("257597-1", "355908", "buy", 1433224214200),
        ("7-0", "1", "ponder", 1433224214300),
    ]
    events = read_events(tmp_path / "out.parquet", CLICKS)
    assert events.select(valid(CLICKS)).to_series().to_list() == [True] * 4 + [False]


def test_diginetica(tmp_path):
    day = 1462665600000  # 2016-05-08
    assert converted(tmp_path, "diginetica", DIGINETICA) == [
        ("2", "32118", "view", day + 243569),
        ("1", "81766", "view", day + 86_400_000 + 526309),
        ("1", "31331", "view", day + 86_400_000 + 1031018),
    ]


@pytest.mark.parametrize(
    ("layout", "text", "says"),
    [
        ("yoochoose", "1,2\n", "2 columns; expected the four of yoochoose-clicks.dat"),
        ("retailrocket", DIGINETICA, "no column timestamp, visitorid, event, itemid"),
        ("diginetica", RETAILROCKET, "expected Diginetica's train-item-views.csv"),
    ],
)
def test_a_file_of_another_layout_is_refused(tmp_path, layout, text, says):
    (tmp_path / "in").write_text(text)
    with pytest.raises(InputError, match=says):
        convert(layout, tmp_path / "in", tmp_path / "out.parquet")
    with pytest.raises(InputError, match="no such file"):
        convert(layout, tmp_path / "nowhere", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists() and set(LAYOUTS) >= {layout}


def test_command_and_what_it_made_is_evaluated(tmp_path, capsys):
    lines = [
        f"{s},2014-04-0{1 + s // 40}T10:{s % 40:02d}:{k:02d}.000Z,{(s * 7 + k) % 23},0"
        for s in range(200)
        for k in range(4)
    ]
    (tmp_path / "in.dat").write_text("\n".join(lines))
    out = tmp_path / "out.parquet"
    assert main(["convert", "yoochoose", str(tmp_path / "in.dat"), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "events": 800}
    words = ["evaluate", "agents.recommend", "--events", str(out), "--items", "events", "--model", "none"]
    assert main([*words, "--partitions", "3", "--merge-every", "100", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["events"] == 800 and report["partitions"] == 3
    assert report["models"]["counts as served"]["all"]["hr@10"] > 0.5

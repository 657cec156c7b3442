"""Recorded live output beside replay output: whole bytes, doubles, what is missing, the first difference."""

import json

import pytest

from streamai import cli
from streamai.errors import InputError
from streamai.replay.parity import compare, output_name
from streamai.replay.record import OUTPUT, RECORD, TableWriter

VALUES = [b'{"id":"clicks/%d/%d","key":"u","scores":[%d.5]}' % (k % 2, k // 2, k) for k in range(20)]


def live(path, values, topic="recommendations", headers=None):
    n = len(values)
    with TableWriter(path, RECORD, topic) as file:
        file.write(
            partition=[0] * n, offset=range(n), key=[b"u"] * n, value=values,
            headers=headers or [[{"key": "elapsed_ns", "value": b"1"}]] * n, kafka_ts_ms=[1] * n,
        )  # fmt: skip
    return path


def replayed(path, values=VALUES, topic="recommendations"):
    n = len(values)
    with TableWriter(path, OUTPUT) as file:
        places = [(k % 2, k // 2) for k in range(n)]
        for name in (topic, "features"):
            file.write(
                partition=[p for p, _ in places], offset=[o for _, o in places], topic=[name] * n,
                value=values,
                tier=[3] * n,
            )  # fmt: skip
    return path


@pytest.fixture
def files(tmp_path):
    return tmp_path / "live.parquet", tmp_path / "replay.parquet"


def test_identical_in_any_order_with_doubles(files):
    other_tier = VALUES[3].replace(b"3.5", b"9.5")
    result = compare(live(files[0], [*reversed(VALUES), other_tier]), replayed(files[1]))
    assert result.identical and (result.compared, result.duplicates) == (20, 1)
    assert result.first is None


def test_of_a_double_the_first_one_counts(files):
    other_tier = VALUES[3].replace(b"3.5", b"9.5")
    result = compare(live(files[0], [other_tier, *VALUES]), replayed(files[1]))
    assert not result.identical and result.different == 1


def test_the_first_difference_is_named(files, capsys):
    changed = list(VALUES)
    changed[6] = VALUES[6].replace(b"6.5", b"6.4")
    changed[9] = VALUES[9].replace(b"9.5", b"9.4")
    result = compare(live(files[0], changed), replayed(files[1]))
    assert (result.different, result.first.id, result.first.field) == (2, "0/3", "scores")
    assert result.first.byte == VALUES[6].index(b"6.5") + 2
    assert cli.main(["parity", *map(str, files)]) == 1
    said = capsys.readouterr().out
    assert "NOT identical" in said and "first difference at 0/3" in said and "'scores'" in said


def test_what_is_missing_on_either_side(files):
    result = compare(live(files[0], VALUES[:-1]), replayed(files[1]))
    assert (result.only_replay, result.only_live, result.identical) == (1, 0, False)
    assert result.first.live is None
    result = compare(live(files[0], VALUES), replayed(files[1], VALUES[:-2]))
    assert (result.only_replay, result.only_live, result.compared) == (0, 2, 18)


def test_nothing_compared_is_not_identical(files, capsys):
    live(files[0], [])
    replayed(files[1])
    assert cli.main(["parity", *map(str, files), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["identical"] is False


def test_late_events_are_known_by_their_header(files):
    originals = [b'{"user_id":"u%d"}' % k for k in range(20)]
    headers = [[{"key": "cause", "value": b"late"}, {"key": "id", "value": b"clicks/%d/%d" % (k % 2, k // 2)}]
               for k in range(20)]  # fmt: skip
    live(files[0], originals, "clicks.late", headers)
    replayed(files[1], originals, "late")
    assert compare(*files).identical
    assert [output_name(n) for n in ("clicks.late", "clicks.dead", "signals")] == ["late", "dead", "signals"]


def test_files_that_do_not_fit_together(files):
    replayed(files[1])
    with pytest.raises(InputError, match="no id"):
        compare(live(files[0], [b"{}"]), files[1])
    with pytest.raises(InputError, match="no output 'signals'"):
        compare(live(files[0], VALUES, "signals"), files[1])


def test_the_topic_is_the_result_where_the_recording_does_not_say(files):
    assert compare(live(files[0], VALUES, ""), replayed(files[1])).identical

"""Recorded live output beside replay output: whole bytes, doubles, what is missing, the first difference."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai import cli
from streamai.errors import InputError
from streamai.replay import parity
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


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_any_order_doubles_and_gaps_equal_two_dicts(seed):
    """The files are met in parts; the result is that of holding both whole."""
    rng = np.random.default_rng(seed)
    here, there = ([p for p in range(400) if rng.random() < 0.95] for _ in range(2))
    changed = {p for p in there if rng.random() < 0.05}
    here += [int(p) for p in rng.choice(here, 20)]
    rng.shuffle(here)
    meeting, sides = parity._Meeting(), [[(p, b"%d" % p) for p in here], []]
    sides[1] = [(p, b"other" if p in changed else b"%d" % p) for p in rng.permutation(there).tolist()]
    while any(sides):
        side = int(rng.integers(2)) if all(sides) else int(not sides[0])
        place, value = sides[side].pop(0)
        meeting.take(side, place % 3, place // 3, value)
    got, both = meeting.result(), set(here) & set(there)
    assert (got.compared, got.different) == (len(both), len(both & changed))
    assert (got.only_live, got.only_replay) == (len(set(here) - both), len(set(there) - both))
    assert got.duplicates == len(here) - len(set(here))
    wrong = (set(here) ^ set(there)) | (both & changed)
    first = min(((p % 3, p // 3) for p in wrong), default=None)
    assert (got.first and got.first.id) == (first and f"{first[0]}/{first[1]}")


def test_memory_holds_only_what_the_files_are_apart(files, monkeypatch):
    """10,000 outputs in parts of 100: never more than a few parts wait for their counterpart."""
    monkeypatch.setattr(parity, "BATCH", 100)
    values = [b'{"id":"clicks/%d/%d"}' % (k % 2, k // 2) for k in range(10_000)]
    order = np.argsort(np.arange(10_000) + np.random.default_rng(1).uniform(0, 90, 10_000))
    near = [values[i] for i in order]
    most, take = [0], parity._Meeting.take

    def watched(self, *args):
        take(self, *args)
        most[0] = max(most[0], sum(map(len, self.waiting)))

    monkeypatch.setattr(parity._Meeting, "take", watched)
    assert compare(live(files[0], near), replayed(files[1], values)).identical
    assert 0 < most[0] < 600


def test_a_file_that_is_none_is_told(tmp_path, capsys):
    good, junk = live(tmp_path / "good.parquet", VALUES), tmp_path / "junk.parquet"
    junk.write_bytes(b"no parquet")
    for pair in ((junk, good), (good, junk), (tmp_path / "none", good), (good, tmp_path / "none")):
        assert cli.main(["parity", *map(str, pair)]) == 1
        assert "is not a" in capsys.readouterr().err

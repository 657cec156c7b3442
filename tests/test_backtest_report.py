"""From scored batches to the report: the tape of instruments, repeatable reports, what is refused."""

import json
import math

import numpy as np
import pytest

from streamai import cli
from streamai.backtest import report
from streamai.backtest.fills import simulate
from streamai.backtest.latency import Histogram
from streamai.backtest.run import DECAY_MS, Tape, Terms, backtest
from streamai.errors import DeclarationError, InputError
from streamai.events import EVENT, MARKET, Events
from streamai.flow import Flow
from streamai.scored import LATE, Scored

NAN = math.nan
NAMES = [b"ALFA", b"BRVO", b"CHRL"]
COMPUTE = Histogram.of(np.array([20_000, 30_000, 500_000]), "by hand")


def batches(cuts=(), n=400, seed=1, late=()):
    """Made events of three instruments with targets, cut into batches: list of (Events, Scored)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.zeros(n, EVENT), np.full((n, len(MARKET.columns)), NAN)
    which = rng.integers(0, 3, n)
    rows["hash0"], rows["hash1"] = which + 10, which
    rows["key_at"], rows["key_len"] = which * 4, 4
    rows["event_ts_ns"] = np.cumsum(rng.integers(0, 50_000_000, n))
    columns[:, 0] = 100 + np.cumsum(rng.integers(-1, 2, n))
    columns[:, 1] = columns[:, 0] + 1
    target = rng.choice([NAN, -1.0, 0.0, 1.0], n)
    status = np.zeros(n, np.uint8)
    status[list(late)] = LATE
    whole = Events("market", 0, rows, columns, np.frombuffer(b"".join(NAMES), np.uint8))
    nothing = np.zeros((n, 0), np.float32)
    out = []
    for a, b in zip([0, *cuts], [*cuts, n]):
        tail = (nothing[a:b], nothing[a:b], nothing[a:b].astype(np.int32), nothing[a:b], target[a:b])
        out.append((whole[a:b], Scored(whole[a:b], status[a:b], np.full(b - a, 3, np.uint8), *tail)))
    return out


def flow(decide=lambda scored, events: scored.target):
    return Flow("paper", "market", schema=MARKET, decide=decide)


def test_a_report_repeats_to_the_bit_for_any_cut():
    terms = Terms(compute=COMPUTE)
    whole = json.dumps(backtest(flow(), batches(), terms))
    assert whole == json.dumps(backtest(flow(), batches(), terms))
    assert whole == json.dumps(backtest(flow(), batches(cuts=range(1, 400)), terms))
    assert whole == json.dumps(backtest(flow(), batches(cuts=(7, 8, 300)), terms))
    other = json.loads(json.dumps(backtest(flow(), batches(), Terms(compute=COMPUTE, seed=8))))
    assert other["fills_digest"] != json.loads(whole)["fills_digest"]


def test_the_total_is_the_sum_of_the_instruments():
    r = backtest(flow(), batches(), Terms(compute=COMPUTE))
    for name in ("gross", "fees", "net", "turnover", "trades", "unfilled", "round_trips"):
        assert r["total"][name] == pytest.approx(sum(a[name] for a in r["instruments"].values()))
    assert r["total"]["net"] == pytest.approx(r["total"]["gross"] - r["total"]["fees"])
    assert set(r["instruments"]) == {n.decode() for n in NAMES}
    assert [d["added_ms"] for d in r["latency_decay"]] == list(DECAY_MS)
    assert r["latency_decay"][0]["net"] == r["total"]["net"]
    assert r["latency_decay"][0]["trades"] >= r["latency_decay"][-1]["trades"]


def test_one_instrument_alone_is_the_one_of_the_whole():
    terms = {"compute": Histogram.of(np.array([20_000])), "fee_bp": 1.0}
    r = backtest(flow(), batches(), Terms(**terms, instrument="BRVO"))
    assert set(r["instruments"]) == {"BRVO"}
    assert r["events"] < 400


def test_the_report_is_what_the_simulation_says():
    tape = Tape(MARKET)
    for events, scored in batches(cuts=(100,)):
        tape.add(events, scored)
    latency_ns = COMPUTE.draw(400, 3) + 2_000_000
    expected = simulate(*tape.columns(), latency_ns, 1.5, 10.0)
    r = backtest(flow(), batches(), Terms(2.0, 1.5, 10.0, 3, COMPUTE))
    assert r["total"] == report.account_row(expected.total) | {"max_drawdown": expected.max_drawdown}
    assert r["fills_digest"] == report.fills_digest(expected.fills)


def test_late_events_are_counted_and_trade_nothing():
    r = backtest(flow(), batches(late=[5, 6]), Terms(compute=COMPUTE))
    assert (r["late"], r["events"]) == (2, 398)


def test_nothing_to_trade_is_said():
    with pytest.raises(DeclarationError, match="decide"):
        backtest(flow(decide=None), batches(), Terms(compute=COMPUTE))
    with pytest.raises(InputError, match="'NONE'"):
        backtest(flow(), batches(), Terms(compute=COMPUTE, instrument="NONE"))
    with pytest.raises(InputError, match="nothing to test"):
        backtest(flow(), [], Terms(compute=COMPUTE))


def test_people_see_every_figure_and_what_it_does_not_prove():
    r = backtest(flow(), batches(), Terms(compute=COMPUTE))
    text = "\n".join(report.lines(r))
    for words in ("net", "largest drawdown", "hit ratio", "latency added, ms", "BRVO", "by hand"):
        assert words in text
    assert report.NOTE in text and "prove nothing" in text
    quiet = [(e, s) for e, s in batches(n=2)]
    quiet[0][1].target[:] = NAN
    assert "-" in "\n".join(report.lines(backtest(flow(), quiet, Terms(compute=COMPUTE))))


@pytest.mark.parametrize("wrong", [["--latency-ms", "-1"], ["--size", "0"], ["--fee-bp", "nan"], []])
def test_wrong_usage_is_refused(wrong):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["backtest", "agents.trade", *wrong, *(["--events", "x"] if wrong else [])])
    assert exit_.value.code == 2

"""From scored batches to the report: the tape of instruments, repeatable reports, what is refused."""

import json
import math
import pathlib

import numpy as np
import polars as pl
import pytest

from streamai import cli
from streamai.backtest import report
from streamai.backtest.fills import simulate
from streamai.backtest.latency import DEFAULT, Histogram
from streamai.backtest.run import DECAY_MS, Tape, Terms, backtest, check, measure_flow, trade
from streamai.errors import DeclarationError, InputError
from streamai.events import CLICKS, EVENT, MARKET, Events
from streamai.flow import Flow, load
from streamai.scored import LATE, Scored

NAN = math.nan
MADE = pathlib.Path(__file__).parent.parent / "replay_data" / "market.parquet"
NAMES = [b"ALFA", b"BRVO", b"CHRL"]
COMPUTE = Histogram.of(np.array([20_000, 30_000, 500_000]), "by hand")


def tape(cuts=(), n=400, seed=1, late=(), only=None, quiet=False):
    """Made events of three instruments with targets, taken up in batches that end at `cuts`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.zeros(n, EVENT), np.full((n, len(MARKET.columns)), NAN)
    which = rng.integers(0, 3, n)
    rows["hash0"], rows["hash1"] = which + 10, which
    rows["key_at"], rows["key_len"] = which * 4, 4
    rows["event_ts_ns"] = np.cumsum(rng.integers(0, 50_000_000, n))
    columns[:, 0] = 100 + np.cumsum(rng.integers(-1, 2, n))
    columns[:, 1] = columns[:, 0] + 1
    target = np.full(n, NAN) if quiet else rng.choice([NAN, -1.0, 0.0, 1.0], n)
    status = np.zeros(n, np.uint8)
    status[list(late)] = LATE
    whole = Events("market", 0, rows, columns, np.frombuffer(b"".join(NAMES), np.uint8))
    nothing = np.zeros((n, 0), np.float32)
    out = Tape(MARKET, only)
    for a, b in zip([0, *cuts], [*cuts, n]):
        tail = (nothing[a:b], nothing[a:b], nothing[a:b].astype(np.int32), nothing[a:b], target[a:b])
        out.add(Scored(whole[a:b], status[a:b], np.full(b - a, 3, np.uint8), *tail))
    return out


def found(terms=None, **options):
    return trade(tape(**options), terms or Terms(compute=COMPUTE), flow="paper")


def test_a_report_repeats_to_the_bit_for_any_cut():
    whole = json.dumps(found())
    assert whole == json.dumps(found())
    assert whole == json.dumps(found(cuts=range(1, 400)))
    assert whole == json.dumps(found(cuts=(7, 8, 300)))
    other = found(Terms(compute=COMPUTE, seed=8))
    assert other["fills_digest"] != json.loads(whole)["fills_digest"]


def test_the_total_is_the_sum_of_the_instruments():
    r = found()
    for name in ("gross", "fees", "net", "turnover", "trades", "unfilled", "round_trips", "mean_exposure"):
        assert r["total"][name] == pytest.approx(sum(a[name] for a in r["instruments"].values()))
    assert r["total"]["net"] == pytest.approx(r["total"]["gross"] - r["total"]["fees"])
    assert set(r["instruments"]) == {n.decode() for n in NAMES}
    assert [d["added_ms"] for d in r["latency_decay"]] == list(DECAY_MS)
    assert r["latency_decay"][0]["net"] == r["total"]["net"]
    assert r["latency_decay"][0]["trades"] >= r["latency_decay"][-1]["trades"]


def test_one_instrument_alone_makes_what_it_makes_among_others():
    terms = Terms(compute=Histogram(np.array([20_000, 20_001]), np.array([1])))
    alone, among = found(terms, only="BRVO"), found(terms)
    assert alone["instruments"] == {"BRVO": among["instruments"]["BRVO"]}
    assert alone["events"] < among["events"] == 400


def test_the_report_is_what_the_simulation_says():
    latency_ns = COMPUTE.draw(400, 3) + 2_000_000
    expected = simulate(*tape().columns(), latency_ns, 1.5, 10.0)
    r = found(Terms(2.0, 1.5, 10.0, 3, COMPUTE))
    for name, value in report.account_row(expected.total).items():
        assert name == "mean_exposure" or r["total"][name] == value
    assert r["total"]["max_drawdown"] == expected.max_drawdown
    assert r["fills_digest"] == report.fills_digest(expected.fills)


def test_what_was_fitted_on_is_fed_and_not_traded():
    t = tape()
    columns = t.columns()
    first, last = int(columns[1].min()), int(columns[1].max())
    later = [c[columns[1] >= first + int((last - first) * 0.6)] for c in columns]
    r = found(Terms(compute=COMPUTE, start=0.6))
    assert r["start"] == 0.6 and r["events"] == len(later[0]) < 400
    latency = COMPUTE.draw(len(later[0]), 7) + 1_000_000
    assert r["total"]["net"] == simulate(*later, latency, 0.5, 1.0).total.net != found()["total"]["net"]
    assert any("first 60% of time" in line for line in report.lines(r))


def test_late_events_are_counted_and_trade_nothing():
    r = found(late=[5, 6])
    assert (r["late"], r["events"]) == (2, 398)


def test_nothing_to_trade_is_said():
    with pytest.raises(InputError, match="'NONE'"):
        found(only="NONE")
    with pytest.raises(InputError, match="nothing to test"):
        trade(Tape(MARKET), Terms(compute=COMPUTE))
    with pytest.raises(DeclarationError, match="decide"):
        check(Flow("paper", "market", schema=MARKET))
    with pytest.raises(DeclarationError, match="bid and ask"):
        check(Flow("paper", "clicks", schema=CLICKS, decide=len))


def test_people_see_every_figure_and_what_it_does_not_prove():
    text = "\n".join(report.lines(found()))
    for words in ("net", "largest drawdown", "hit ratio", "latency added, ms", "BRVO", "by hand"):
        assert words in text
    assert report.NOTE in text and "prove nothing" in text
    assert " - " in "\n".join(report.lines(found(quiet=True)))


def test_the_shipped_histogram_is_readable():
    shipped = Histogram.load(DEFAULT)
    assert shipped.source and shipped.counts.sum() >= 10_000
    assert shipped.quantile_ns(0.5) <= shipped.quantile_ns(0.99)


PAPER = """
import numpy as np
from streamai import FeatureView, Flow, queue_imbalance

class Queues(FeatureView):
    source = "market"
    key = "instrument"
    imbalance = queue_imbalance()

def decide(scored, events):
    edge = scored.features[:, 0]
    return np.where(np.abs(edge) > 0.6, np.sign(edge), np.nan)

flow = Flow("paper", "market", views=[Queues], decide=decide)
"""


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """A flow without a model in the current folder, and a path of its own for the histogram."""
    (tmp_path / "paper_flow.py").write_text(PAPER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "compute.json"


def test_the_command_repeats_to_the_bit(paper, capsys):
    """Twice, in batches of one and of 256, from a file through the engine."""
    asked = ["backtest", "paper_flow", "--events", str(MADE), "--compute-histogram", str(paper), "--json"]
    COMPUTE.save(paper)
    outputs = []
    for _ in range(2):
        assert cli.main(asked) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    r = json.loads(outputs[0])
    assert (r["events"], r["late"], r["dead"]) == (4000, 0, 0)
    assert r["total"]["trades"] > 50 and set(r["instruments"]) == {"ALFA", "BRVO", "CHRL"}
    terms = Terms(compute=Histogram.load(paper))
    assert json.loads(json.dumps(backtest(load("paper_flow"), MADE, terms, batch=1))) == r


def test_targets_are_filled_on_the_file_s_own_quotes(paper):
    """The engine's targets equal those reckoned from the file, so fills do too."""
    m = pl.read_parquet(MADE)
    edge = ((m["bid_size"] - m["ask_size"]) / (m["bid_size"] + m["ask_size"])).to_numpy().astype(np.float32)
    names = m["instrument"].unique(maintain_order=True).to_list()
    expected = simulate(
        np.array([names.index(i) for i in m["instrument"]]),
        m["event_ts_ns"].to_numpy(),
        m["bid"].to_numpy(),
        m["ask"].to_numpy(),
        np.where(np.abs(edge) > np.float32(0.6), np.sign(edge), NAN),
        COMPUTE.draw(len(m), 7) + 1_000_000,
        0.5,
    )
    r = backtest(load("paper_flow"), MADE, Terms(compute=COMPUTE))
    assert r["fills_digest"] == report.fills_digest(expected.fills)
    assert r["total"]["net"] == expected.total.net


def test_compute_time_is_measured_on_the_engine(paper, capsys):
    few = ["--events", str(MADE), "--measure", str(paper)]
    assert cli.main(["backtest", "paper_flow", *few]) == 0
    assert Histogram.load(paper).source in capsys.readouterr().out
    assert Histogram.load(paper).counts.sum() == 3600
    assert measure_flow(load("paper_flow"), MADE, n=50, warm=5).counts.sum() == 50


@pytest.mark.parametrize("wrong", [["--latency-ms", "-1"], ["--size", "0"], ["--fee-bp", "nan"], []])
def test_wrong_usage_is_refused(wrong):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["backtest", "agents.trade", *wrong, *(["--events", "x"] if wrong else [])])
    assert exit_.value.code == 2

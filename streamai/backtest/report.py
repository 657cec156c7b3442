"""What a backtest found, as one JSON object and as a table for people."""

from __future__ import annotations

import hashlib

import numpy as np

from streamai.backtest.fills import Account, Result

NOTE = (
    "In-sample models and planted signals prove nothing: on the made market the signal was put there, and a "
    "model tested on events it was trained on has seen the answers. Orders are filled whole at the touch, "
    "with no queue and no impact. No profit is claimed."
)


def account_row(a: Account) -> dict:
    """An Account as JSON values; null where there is nothing to divide by."""
    span_s = a.span_ns * 1e-9
    return {
        "gross": a.gross,
        "fees": a.fees,
        "net": a.net,
        "gross_bp": a.bp(a.gross),
        "net_bp": a.bp(a.net),
        "turnover": a.notional,
        "spread_cost": a.spread_cost,
        "slippage": a.slippage,
        "trades": a.fills,
        "unfilled": a.unfilled,
        "round_trips": a.round_trips,
        "hit_ratio": a.hit_ratio,
        "holding_s": None if a.holding_ns is None else a.holding_ns * 1e-9,
        "in_position": a.in_position_ns / a.span_ns if a.span_ns else None,
        "mean_exposure": a.exposure / span_s if span_s else None,
        "end_position": a.position,
    }


def fills_digest(fills: np.ndarray) -> str:
    """16 hex digits over every byte of every fill: two runs that agree in it made the same trades."""
    return hashlib.blake2b(fills.tobytes(), digest_size=8).hexdigest()


def build(result: Result, names: list[str], decay: list[tuple[float, Result]], **about) -> dict:
    """The report of one backtest: `about` (settings, counts, digests) first, then what was found.

    decay   (added latency in ms, result under it), the first with 0

    In the total, `in_position` is the mean share of the instruments (weighted by their time), `mean_exposure`
    the sum of theirs.
    """
    instruments = {name: account_row(a) for name, a in zip(names, result.accounts)}
    exposures = [a["mean_exposure"] for a in instruments.values() if a["mean_exposure"] is not None]
    total = account_row(result.total) | {"mean_exposure": sum(exposures) if exposures else None}
    return {
        **about,
        "total": total | {"max_drawdown": result.max_drawdown},
        "instruments": instruments,
        "latency_decay": [
            {
                "added_ms": added_ms,
                "gross": r.total.gross,
                "net": r.total.net,
                "gross_bp": r.total.bp(r.total.gross),
                "net_bp": r.total.bp(r.total.net),
                "trades": r.total.fills,
                "unfilled": r.total.unfilled,
            }
            for added_ms, r in decay
        ],
        "fills_digest": fills_digest(result.fills),
        "note": NOTE,
    }


_ROWS = (
    ("gross", "gross", "{:,.2f}"),
    ("fees", "fees", "{:,.2f}"),
    ("net", "net", "{:,.2f}"),
    ("gross_bp", "gross, bp of turnover", "{:.3f}"),
    ("net_bp", "net, bp of turnover", "{:.3f}"),
    ("max_drawdown", "largest drawdown, net", "{:,.2f}"),
    ("turnover", "turnover", "{:,.0f}"),
    ("spread_cost", "paid in half spreads", "{:,.2f}"),
    ("slippage", "lost between decision and fill", "{:,.2f}"),
    ("trades", "trades", "{:,}"),
    ("unfilled", "orders unfilled at the end", "{:,}"),
    ("round_trips", "round trips", "{:,}"),
    ("hit_ratio", "hit ratio, after fees", "{:.3f}"),
    ("holding_s", "mean holding time, s", "{:.3f}"),
    ("in_position", "time with a position, share", "{:.3f}"),
    ("mean_exposure", "mean exposure", "{:,.2f}"),
    ("end_position", "position at the end", "{:g}"),
)


def _text(value, form: str) -> str:
    return "-" if value is None else form.format(value)


def _align(lines: list[list[str]]) -> list[str]:
    """Columns beside each other: the first to the left, the others to the right."""
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
    return [
        "  ".join(cell.rjust(w) if c else cell.ljust(w) for c, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    ]


def lines(report: dict, instruments_max: int = 6) -> list[str]:
    """The report as lines of text; instruments beyond the first few are in the JSON only."""
    shown = list(report["instruments"].items())[:instruments_max]
    columns = [("all", report["total"]), *(shown if len(report["instruments"]) > 1 else [])]
    account = [["", *(name for name, _ in columns)]]
    account += [[label, *(_text(c.get(key), form) for _, c in columns)] for key, label, form in _ROWS]
    decay = [["latency added, ms", "gross", "net", "gross bp", "net bp", "trades", "unfilled"]]
    decay += [
        [
            f"{d['added_ms']:g}",
            f"{d['gross']:,.2f}",
            f"{d['net']:,.2f}",
            _text(d["gross_bp"], "{:.3f}"),
            _text(d["net_bp"], "{:.3f}"),
            f"{d['trades']:,}",
            f"{d['unfilled']:,}",
        ]
        for d in report["latency_decay"]
    ]
    head = [
        f"{report['flow']}: {report['events']:,} events of {len(report['instruments'])} instruments, "
        f"{report['late']:,} late, {report['dead']:,} dead",
        f"latency {report['latency_ms']:g} ms + compute time, p50 {report['compute']['p50_us']:g} us, "
        f"p99 {report['compute']['p99_us']:g} us (seed {report['seed']}; {report['compute']['source']})",
        f"fee {report['fee_bp']:g} bp a trade, {report['size']:g} a unit of target",
        *([f"the first {report['start']:.0%} of time is fed and not traded"] if report["start"] else []),
    ]
    more = len(report["instruments"]) - len(shown)
    rest = [f"and {more} more instruments, in --json"] if more else []
    return [*head, "", *_align(account), *rest, "", *_align(decay), "", report["note"]]

"""`streamai convert`: public files of market data and of sessions -> events in parquet."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator

HELP = "turn a file of events into another format"


def add(subparsers) -> None:
    p = subparsers.add_parser("convert", help=HELP, description=__doc__)
    layouts = p.add_subparsers(dest="layout", metavar="LAYOUT", required=True)
    lobster = layouts.add_parser("lobster", help="LOBSTER message and book rows")
    lobster.add_argument("file", help="parquet, or ..._message_N.csv with ..._orderbook_N.csv beside it")
    lobster.add_argument("out", help="parquet file to write")
    lobster.add_argument("--date", type=dt.date.fromisoformat, help="day of the file, YYYY-MM-DD (New York)")
    lobster.add_argument("--instrument", help="name of the instrument")
    taq = layouts.add_parser("taq", help="quotes of single exchanges and trades -> best bid and offer")
    taq.add_argument("quotes", help="parquet: date, time_ms, bid_price_1e4, ..., exchange, suspicious")
    taq.add_argument("trades", help="parquet: date, time_ms, price_1e4, size, exchange, suspicious")
    taq.add_argument("out", help="parquet file to write")
    taq.add_argument("--instrument", required=True, help="name of the instrument")
    taq.add_argument("--session", action="store_true", help="only 09:30 to 16:00 New York")
    sessions = []
    for name, file in (
        ("yoochoose", "yoochoose-clicks.dat"),
        ("retailrocket", "events.csv of RetailRocket; sessions end after 30 idle minutes"),
        ("diginetica", "train-item-views.csv of Diginetica"),
    ):
        sessions.append(layouts.add_parser(name, help=file))
        sessions[-1].add_argument("file", help=file)
        sessions[-1].add_argument("out", help="parquet file to write")
    for layout in (lobster, taq, *sessions):
        layout.add_argument("--json", action="store_true", help="last line is one JSON object")


def run(args) -> int:
    from streamai.replay import nbbo, sessions

    if args.layout in sessions.LAYOUTS:
        return _said(sessions.convert(args.layout, args.file, args.out), args)
    if args.layout == "lobster":
        parts = iter([nbbo.lobster(args.file, args.instrument, args.date)])
    else:
        parts = nbbo.taq(args.quotes, args.trades, args.instrument, args.session)
    return _said(_write(parts, args.out), args)


def _said(rows: int, args) -> int:
    print(json.dumps({"out": args.out, "events": rows}) if args.json else f"{rows:,} events -> {args.out}")
    return 0


def _write(parts: Iterator, out: str) -> int:
    import pathlib

    import pyarrow.parquet as pq

    rows, writer, draft = 0, None, pathlib.Path(out + ".part")
    try:
        for part in parts:
            table = part.to_arrow()
            writer = writer or pq.ParquetWriter(draft, table.schema, compression="zstd")
            writer.write_table(table)
            rows += len(part)
    except BaseException:
        if writer:
            writer.close()
            draft.unlink()
        raise
    if writer:
        writer.close()
        draft.replace(out)
    return rows

"""Options that every command reading a file of events takes."""

from __future__ import annotations

import argparse

EPILOG = """\
--map target=source says which column is which field; repeat it. Examples:
  --map user_id=visitor                 another name
  --map event_ts_ms=time                the time's unit is in the target: _s, _ms, _us, _ns
  --map event_ts=created_at             a date-time column carries its own unit
  --map event_ts_ms=date+time_ms        a date (column or 2012-06-21) and a time since its midnight
  --map price=price_1e4/10000           a number scaled
  --map kind==click                     the same for every row (as --set kind=click)
  --map price=                          leave that column out
  --map position=position               where there is an order but no time
"""


def whole(low: int):
    """The type of an option that is a whole number from `low` up."""

    def number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is below {low}")
        return value

    return number


def amount(text: str) -> float:
    """The type of an option that is a number from 0 up."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 up")
    return value


def add_mapping(parser: argparse.ArgumentParser) -> None:
    """--map, --set, --kind, --zone, --sort."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    group = parser.add_argument_group("columns")
    group.add_argument(
        "--map", action="append", default=[], metavar="TARGET=SOURCE", help="see below; repeat"
    )
    group.add_argument(
        "--set", action="append", default=[], metavar="TARGET=VALUE", help="for all rows; repeat"
    )
    group.add_argument(
        "--kind", action="append", default=[], metavar="THEIRS=OURS", help="rename a kind; repeat"
    )
    group.add_argument("--zone", default="UTC", help="IANA zone of times that carry none (UTC)")
    group.add_argument("--sort", action="store_true", help="by event time; default: the file's order")


def add_ring(parser: argparse.ArgumentParser) -> None:
    """--ring."""
    parser.add_argument(
        "--ring", type=whole(1), metavar="N", help="events of a key that are kept, in place of the flow's"
    )


def mapping_of(args: argparse.Namespace):
    """The Mapping that the options say."""
    from streamai.replay.mapping import Mapping

    return Mapping.parse(args.map, args.set, args.kind, args.zone)


def flow_of(args: argparse.Namespace, mapping):
    """The flow of args.flow, with `--model`, `--items` and `--ring` in place of its own.

    `--items events` makes a catalogue of the items that are met in `--events`, in the order of their ids.
    """
    from streamai.flow import Online, load

    flow, changes = load(args.flow), {}
    if args.model:
        changes["model"] = args.model
    if getattr(args, "ring", None):
        changes["ring"] = args.ring
    if getattr(args, "online", None):
        changes["online"] = Online(args.online_rate, args.online_bias_rate, args.online)
    if args.model == "none":  # what `decide` decides by is the model's
        changes |= {"model": None, "decide": None}
    if args.items == "events":
        from streamai.catalogue import Catalogue
        from streamai.replay.read import item_ids

        changes["catalogue"] = Catalogue.of_ids(item_ids(args.events, flow.schema, mapping))
    elif args.items:
        changes["catalogue"] = args.items
    return flow.but(**changes) if changes else flow

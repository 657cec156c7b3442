"""The command `streamai`. Each subcommand is a module with `add(subparsers)` and `run(args) -> exit code`.

Exit codes: 0 what was asked holds, 2 wrong usage, 1 anything else, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from streamai import __version__
from streamai.errors import DeclarationError, SettingsError, StreamaiError

COMMANDS = {
    "demo": "start everything on this machine, feed it, watch it, prove that live equals replay",
    "worker": "run a flow on Kafka (a Faust worker)",
    "replay": "run a flow over history",
    "parity": "compare what was served with what replay gives",
    "produce": "write a file of events into a topic",
    "ask": "ask a running worker about a key",
    "record": "write a topic to parquet, in arrival order",
    "convert": "turn a file of events into another format",
    "index": "index the items of a large catalogue",
    "items": "add text vectors to a catalogue",
    "generate": "make events, as many as asked",
    "train": "train a flow's model and export it",
    "evaluate": "measure a flow's quality on history",
    "study": "measure a market signal beside its baselines",
    "fi2010": "run the FI-2010 benchmark on its files",
    "backtest": "trade a flow's targets on history",
    "plan": "show a flow's features, row layout and memory",
    "state": "look into the stored state of a key",
    "stats": "show latency and throughput of a running worker",
    "warm": "compile the kernels and measure the cost table",
    "config": "print the settings and where each came from",
}
"""Name and one line for the list; the module is read only when its command is used."""


def parser(command: str) -> argparse.ArgumentParser:
    """The parser with the options of one command; the others are listed by name only."""
    root = argparse.ArgumentParser(
        prog="streamai", description="Every event scored, in a millisecond, by a small language model."
    )
    root.add_argument("--version", action="version", version=f"streamai {__version__}")
    subparsers = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        if name == command:
            importlib.import_module(f"streamai.cli.{name}").add(subparsers)
        else:
            subparsers.add_parser(name, help=line)
    return root


def _command(argv: list[str]) -> str:
    return next((a for a in argv if not a.startswith("-")), "")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the return value is the process's exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name = _command(argv)
    try:
        args = parser(name).parse_args(argv)
        return int(importlib.import_module(f"streamai.cli.{args.command}").run(args) or 0)
    except (DeclarationError, SettingsError) as e:
        print(f"streamai {name}: {e}", file=sys.stderr)
        return 2
    except StreamaiError as e:
        print(f"streamai {name}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"streamai {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `streamai plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:  # a file or a folder that cannot be used: it says which and why
        if e.filename is None:
            raise
        print(f"streamai {name}: {e}", file=sys.stderr)
        return 1

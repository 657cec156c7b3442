"""python -m tests.bench [NAME ...] [--json]: run the measurements, print a table or one object a line."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import os
import pathlib
import platform
import sys
import time

MODULES = ("features", "wire", "model", "step", "live", "backtest", "peers", "runtimes", "change")
GROUPS = {
    "decode": "wire",
    "encode": "wire",
    "lm": "model",
    "scan": "model",
    "counts": "model",
    "checkpoint": "step",
    "peer": "peers",
    "runtime": "runtimes",
    "swap": "change",
    "merge": "change",
}
"""Module of a name's first part, where it is not the part itself."""
FIGURES = ("name", "value", "unit", "n", "peer", "peer_value", "limit", "ratio_to_peer", "ratio_to_limit")
KEYS = (*FIGURES, "machine")


@functools.cache
def machine() -> str:
    """Processor, cores, interpreter: figures of two machines are not compared."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return f"{os.cpu_count()} x {model}, {platform.python_implementation()} {platform.python_version()}"


def completed(row: dict) -> dict:
    """A row with every key of KEYS, ratios reckoned; other keys of the row stay after them."""
    row = {"machine": machine(), **row}
    value = row["value"]
    for to, key in (("ratio_to_peer", "peer_value"), ("ratio_to_limit", "limit")):
        if row.get(to) is None and row.get(key) and value is not None:
            row[to] = round(value / row[key], 3)
    return {k: row.get(k) for k in KEYS} | {k: v for k, v in row.items() if k not in KEYS}


def functions(module) -> list:
    """Public functions of a module that can be called without an argument, in the order of the file."""
    found = [
        f
        for name, f in vars(module).items()
        if inspect.isfunction(f) and not name.startswith("_") and f.__module__ == module.__name__
    ]
    free = [
        f
        for f in found
        if all(
            p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            for p in inspect.signature(f).parameters.values()
        )
    ]
    return sorted(free, key=lambda f: f.__code__.co_firstlineno)


def matches(name: str, asked: list[str]) -> bool:
    """Whether a figure's name is asked for: by itself, by its group, or by a beginning up to a '_'."""
    return any(name == a or name.startswith((a + "/", a + "_")) for a in asked)


def module_of(name: str) -> str:
    group = name.split("/")[0]
    return GROUPS.get(group, group)


def measure(asked: list[str], note):
    """Rows of everything asked for (nothing asked = all modules but the peers), one after the other."""
    modules = dict.fromkeys(map(module_of, asked)) if asked else [m for m in MODULES if m != "peers"]
    for m in modules:
        if m not in MODULES:
            raise SystemExit(f"tests.bench: no measurement {m!r}; there are {', '.join(MODULES)}")
        if not (pathlib.Path(__file__).parent / f"{m}.py").exists():
            note(f"{m}: not there")
            continue
        whole_module = not asked or m in asked
        for f in functions(importlib.import_module(f"tests.bench.{m}")):
            declared = getattr(f, "names", ())
            if declared and not whole_module and not any(matches(n, asked) for n in declared):
                continue
            note(f"{m}.{f.__name__} ...")
            began = time.perf_counter()
            rows = f()
            note(f"{m}.{f.__name__}: {time.perf_counter() - began:.1f} s")
            for row in [rows] if isinstance(rows, dict) else rows or []:
                if whole_module or matches(row["name"], asked):
                    yield completed(row)


def text(value) -> str:
    """A figure with four significant digits, thousands apart."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def table(rows: list[dict]) -> None:
    """The figures for people."""
    from rich.console import Console
    from rich.table import Table

    out = Table(title=machine(), title_justify="left", box=None, pad_edge=False)
    for key in FIGURES:
        out.add_column(key, justify="left" if key in ("name", "unit", "peer") else "right")
    for row in rows:
        out.add_row(*(text(row[k]) for k in FIGURES))
    console = Console()
    Console(width=max(console.width, 150) if not console.is_terminal else None).print(out)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="lm, features/w1, ...; none = all")
    parser.add_argument("--json", action="store_true", help="one object a line")
    args = parser.parse_args()
    rows = []
    for row in measure(args.names, note=lambda line: print(line, file=sys.stderr, flush=True)):
        rows.append(row)
        if args.json:
            print(json.dumps(row), flush=True)
    if not args.json:
        table(rows)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())

"""Trains the demo's models on made events and writes them beside these files: `make demo-train`.

    python -m replay_data.train [--clicks 100000] [--market 100000] [--out replay_data/models]

Small (width 32), so that both fit into the repository; what they find was planted by the generator.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from replay_data import generate
from streamai import cli

HERE = Path(__file__).parent
EPOCHS = {"recommend": 12, "trade": 4}
LAYERS = {"recommend": 2, "trade": 1}  # a second layer found no more of the planted signal


def main() -> int:
    """Make events, train both flows, print their figures; 0 when both models were written."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clicks", type=int, default=100_000)
    p.add_argument("--market", type=int, default=100_000)
    p.add_argument("--seed", type=int, default=11, help="of the events; not the demo's, which are new to it")
    p.add_argument("--epochs", type=int, help="in place of 12 and 4")
    p.add_argument("--out", type=Path, default=HERE / "models")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        generate.main(["--clicks", str(args.clicks), "--market", str(args.market),
                       "--seed", str(args.seed), "--out", folder])  # fmt: skip
        for name, source in (("recommend", "clicks"), ("trade", "market")):
            code = cli.main([
                "train", f"agents.{name}", "--events", f"{folder}/{source}.parquet",
                "--out", str(args.out / f"{name}.weights"), "--d", "32", "--dropout", "0.1",
                "--protocol", "all",
                "--epochs", str(args.epochs or EPOCHS[name]), "--layers", str(LAYERS[name]),
                *(["--fresh"] if name == "recommend" else []),  # a demo begins with cold counts
            ])  # fmt: skip
            if code:
                return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""python -m streamai.broker: run the embedded broker until told to stop; prints its address on one line."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import threading

import uvloop

from streamai.broker.broker import Broker


async def run(args: argparse.Namespace) -> None:
    broker = Broker(args.port, args.host, args.partitions)
    await broker.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # stored batches are bytes: nothing for the collector to find
    print(broker.bootstrap, flush=True)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for s in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(s, stop.set)
    if args.with_parent:
        # a daemon thread: the executor's would be waited for at exit
        threading.Thread(target=_wait_for_parent, args=(loop, stop), daemon=True).start()
    await stop.wait()
    await broker.stop()


def _wait_for_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    os.read(0, 1)  # nothing is ever written: returns when the parent has gone
    loop.call_soon_threadsafe(stop.set)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m streamai.broker", description=__doc__)
    parser.add_argument("--port", type=int, default=9092, help="0 = any free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--partitions", type=int, default=4, help="of topics created by being asked for")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    args = parser.parse_args()
    try:
        uvloop.run(run(args))
    except OSError as e:
        print(f"cannot listen on {args.host}:{args.port}: {e}; take another --port", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

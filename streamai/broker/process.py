"""The broker in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType


class BrokerProcess:
    """A running `python -m streamai.broker`; `bootstrap` is its address. Stops at the end of a `with`."""

    def __init__(self, process: subprocess.Popen, bootstrap: str) -> None:
        self.process, self.bootstrap = process, bootstrap

    def stop(self) -> None:
        """End it; what it stored is gone."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> BrokerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_broker_process(port: int = 0, partitions: int = 4) -> BrokerProcess:
    """Start a broker process and wait until it listens. port 0 = any free one.

    It ends with its parent: it watches its standard input, which closes when the parent dies.
    """
    command = [sys.executable, "-m", "streamai.broker", "--port", str(port), "--partitions", str(partitions)]
    process = subprocess.Popen(
        [*command, "--with-parent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline().strip()  # empty when it ended without listening
    if not line:
        raise OSError(f"the embedded broker did not start (exit code {process.wait()}): {' '.join(command)}")
    return BrokerProcess(process, line)

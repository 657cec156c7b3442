"""The demo, whole and headless, and its end by Ctrl-C: nothing is left running."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from streamai.cli._demo_stage import BROKEN, Stage, made_events
from streamai.errors import DeclarationError
from streamai.events import CLICKS, MARKET

ROOT = pathlib.Path(__file__).parent.parent


def start(folder, *words):
    """A demo process; its output is read line by line."""
    command = [sys.executable, "-u", "-m", "streamai", "demo", "--headless", "--folder", str(folder), *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def children(folder) -> list[str]:
    """Processes that know the demo's folder (Linux: from /proc)."""
    found = []
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            about = (p / "environ").read_bytes() + (p / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in about and int(p.name) != os.getpid():
            found.append(p.name)
    return found


def test_demo_proves_parity_and_leaves_nothing_running(tmp_path):
    folder = tmp_path / "demo"
    demo = start(folder, "--seconds", "3", "--rate", "100")
    out, err = demo.communicate(timeout=400)
    assert demo.returncode == 0, out + err
    said = json.loads(out.splitlines()[-1])
    assert said["parity"] is True
    for flow in said["flows"].values():
        assert flow["sent"] == flow["scored"] + flow["late"] + flow["dead"] == 300
        assert flow["latency_ms"]["total"]["p50"] > 0
    compared = [p for outputs in said["compared"].values() for p in outputs.values()]
    assert len(compared) == 4 and all(p["compared"] == 300 and p["identical"] for p in compared)
    assert children(folder) == []


@pytest.mark.parametrize("line", ["starting the broker", "feeding both", "ending the workers"])
def test_ctrl_c_ends_it_cleanly(tmp_path, line):
    folder = tmp_path / "demo"
    demo = start(folder, "--seconds", "2", "--rate", "50")
    for text in demo.stdout:
        if line in text:
            break
    time.sleep(0.3)
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert children(folder) == []


def test_made_events_hold_the_broken_ones_where_they_were_put():
    for schema in (CLICKS, MARKET):
        values, keys = made_events(2600, schema)
        assert len(values) == len(keys) == 2603
        assert [values[i] for i in (500, 1501, 2502)] == list(BROKEN[:3])
        good = [json.loads(v) for i, v in enumerate(values) if i not in (500, 1501, 2502)]
        assert max(e["event_ts_ns"] for e in good) <= time.time_ns()
        assert keys[0].decode() == good[0][schema.key]


def test_a_folder_with_other_things_is_not_emptied(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(DeclarationError, match="not a demo's folder"), Stage(tmp_path, ()):
        pass
    assert (tmp_path / "mine").read_text() == "precious"

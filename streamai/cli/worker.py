"""`streamai worker agents.recommend`: the same as `faust -A agents.recommend worker`."""

from __future__ import annotations

import pathlib
import socket


def add(subparsers) -> None:
    p = subparsers.add_parser(
        "worker",
        help="run a flow on Kafka (a Faust worker)",
        description="Read the flow's topic, write its outputs, keep its state. Stop with Ctrl-C or SIGTERM. "
        "Kafka's address and the rest are settings: `streamai config`.",
    )
    p.add_argument("module", help="where flow and app are, such as agents.recommend")
    p.add_argument("--web-port", type=int, help="port of /health, /ready, /metrics and /stats; 0 = none")
    p.add_argument("--loglevel", default="info", choices=["debug", "info", "warn", "error"])


def run(args) -> int:
    from faust.cli.faust import cli

    from streamai import flow, settings
    from streamai.live.connection import connection

    # what follows says now what would else be said after Faust's banner, with a stack
    here = settings.load()
    connection(here.kafka)
    flow.load(args.module)
    pathlib.Path(here.state.folder).mkdir(parents=True, exist_ok=True)
    port = here.web.port if args.web_port is None else args.web_port
    if port:
        _check_free(here.web.host, port)
    web = ["--web-port", str(port)] if port else ["--without-web"]
    command = ["-A", args.module, "worker", "-l", args.loglevel, *web]
    cli.main(command, prog_name="streamai worker", standalone_mode=True)
    return 0


def _check_free(host: str, port: int) -> None:
    """SettingsError if nothing can listen there."""
    from streamai.errors import SettingsError

    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            s.bind(address)
    except (OSError, OverflowError) as e:
        raise SettingsError(
            f"the web endpoint cannot listen on {host}:{port}: {e}. Another worker may be there; give "
            "--web-port or STREAMAI_WEB__PORT (0 = no web endpoint)"
        ) from e

"""`streamai worker agents.recommend`: the same as `faust -A agents.recommend worker`."""

from __future__ import annotations


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

    connection(settings.load().kafka)  # says now what would else be said after Faust's banner
    flow.load(args.module)
    port = settings.load().web.port if args.web_port is None else args.web_port
    web = ["--web-port", str(port)] if port else ["--without-web"]
    command = ["-A", args.module, "worker", "-l", args.loglevel, *web]
    cli.main(command, prog_name="streamai worker", standalone_mode=True)
    return 0

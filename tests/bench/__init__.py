"""Measurements, each beside its peer or limit: `make bench`, or `python -m tests.bench NAME ... [--json]`.

A module of this folder holds one question. Its public functions without parameters are run; each returns
a dict or a list of dicts:

    name value unit n            what, how much, of what, over how many events
    peer peer_value              what else was measured in the same run, and its figure
    limit                        the figure to reach (or not to exceed, when lower is better)

The harness adds ratio_to_peer, ratio_to_limit and machine. `names(...)` declares what a function measures,
so that it runs alone when one of its names is asked for.
"""


def names(*measured: str):
    """Decorator: the figures that a function measures."""

    def mark(function):
        function.names = measured
        return function

    return mark

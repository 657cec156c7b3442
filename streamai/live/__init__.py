"""A flow on Kafka, in a Faust worker: `live.app(flow)` and `live.CrashingSupervisor` for its agent."""

from mode import CrashingSupervisor

from streamai.live.app import app

__all__ = ["CrashingSupervisor", "app"]

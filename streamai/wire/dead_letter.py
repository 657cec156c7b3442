"""What could not become an event: its offset, why, and its bytes as they came.

Causes are of a fixed vocabulary, so that they can be counted by their first words:

    null value | truncated record | not JSON | not JSON: NaN or Infinity | not a JSON object
    number out of range | record of N bytes exceeds M | record of N bytes, expected M
    binary version N, expected M | binary record of another schema
    missing NAME | empty NAME | NAME of N bytes exceeds 256 | NAME is not Unicode text
    wrong type: NAME is a/an TYPE | unknown kind 'X'
    more than one event time: A, B | absurd event time: NAME is X
    event time N min ahead of the record's Kafka time
    negative NAME: X | zero NAME | not finite: NAME | NAME is X, expected -1, 0 or 1
    bid above ask: X > Y | trade without price
    k out of range: X, expected 1 to N | malformed filter: WHY | candidates of N items exceeds M
"""

from __future__ import annotations

from dataclasses import dataclass


class Rejected(ValueError):
    """A record that is not a good event; the message is the cause."""


@dataclass(frozen=True)
class DeadLetter:
    """One rejected record: Kafka offset, cause, original value (b"" for a null one) and key."""

    offset: int
    cause: str
    value: bytes
    key: bytes | None = None

    def headers(self, topic: str = "", partition: int = 0) -> list[tuple[str, bytes]]:
        """Kafka headers of the dead-letter record: cause, and the place it came from."""
        place = f"{topic}/{partition}/{self.offset}" if topic else str(self.offset)
        return [("cause", self.cause.encode()), ("id", place.encode())]

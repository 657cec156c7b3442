"""Versions: from which offset on a partition is served by which tables. One record each time they change.

    {"id":"clicks/0/1234","flow":"recommend","model":"8d4e...","offset":1234,"tables":null}

Outputs of events from `offset` on are that model's (a double may be older: the first one counts). The topic
tells a replay where to change; a worker may write a record more than once.
"""

from __future__ import annotations

import msgspec

from streamai.errors import InputError
from streamai.flow import Flow


class Version(msgspec.Struct, frozen=True):
    """One record.

    offset  of the first event that is served by the model of this digest
    tables  digest of the other partitions' counts beside the own; None = the own alone
    """

    id: str
    flow: str
    model: str
    offset: int
    tables: str | None = None

    @property
    def partition(self) -> int:
        """Of the source topic."""
        return int(self.id.rsplit("/", 2)[1])


def encode(flow: Flow, partition: int, offset: int, model: str, tables: str | None = None) -> bytes:
    """The value of a flow's record: these digests serve from the offset on."""
    place = f"{flow.source}/{partition}/{offset}"
    return msgspec.json.encode(Version(place, flow.name, model, offset, tables))


def decode(value: bytes | None) -> Version:
    """InputError if the value is no version."""
    try:
        version = msgspec.json.decode(value or b"", type=Version)
        version.partition  # noqa: B018
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise InputError(f"not a version of a flow: {(value or b'')[:60]!r} ({error})") from error
    return version

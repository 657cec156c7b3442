"""Which requests the broker answers, in which versions. The structs are aiokafka's."""

from __future__ import annotations

from aiokafka.protocol import (
    admin,
    commit,
    coordination,
    fetch,
    group,
    metadata,
    offset,
    produce,
    transaction,
)
from aiokafka.protocol.types import Array, Schema

OK = 0
OFFSET_OUT_OF_RANGE = 1
UNKNOWN_TOPIC = 3
ILLEGAL_GENERATION = 22
UNKNOWN_MEMBER = 25
REBALANCE_IN_PROGRESS = 27
UNSUPPORTED_VERSION = 35
TOPIC_EXISTS = 36
INVALID_PARTITIONS = 37
OUT_OF_ORDER_SEQUENCE = 45
INVALID_PRODUCER_EPOCH = 47
TRANSACTIONS_REFUSED = 53  # "transactional id authorization failed": both clients take it as final
FENCED_INSTANCE = 82

API_VERSIONS = 18

_REQUESTS = (  # (request, lowest version, highest version, name of the method that answers)
    (produce.ProduceRequest, 0, 7, "produce"),
    (fetch.FetchRequest, 0, 11, "fetch"),
    (offset.OffsetRequest, 0, 3, "list_offsets"),
    (metadata.MetadataRequest, 0, 5, "metadata"),
    (commit.OffsetCommitRequest, 0, 3, "commit_offsets"),
    (commit.OffsetFetchRequest, 0, 3, "fetch_offsets"),
    (coordination.FindCoordinatorRequest, 0, 1, "find_coordinator"),
    (group.JoinGroupRequest, 0, 5, "join_group"),
    (group.HeartbeatRequest, 0, 3, "heartbeat"),
    (group.LeaveGroupRequest, 0, 1, "leave_group"),
    (group.SyncGroupRequest, 0, 3, "sync_group"),
    (admin.ListGroupsRequest, 0, 1, "list_groups"),
    (admin.ApiVersionRequest, 0, 2, "api_versions"),
    (admin.CreateTopicsRequest, 0, 3, "create_topics"),
    (admin.DeleteTopicsRequest, 0, 3, "delete_topics"),
    (transaction.InitProducerIdRequest, 0, 0, "init_producer_id"),
)


class Api:
    """One kind of request: its structs by version, the versions offered, the broker's method for it."""

    def __init__(self, request: type, low: int, high: int, method: str) -> None:
        self.structs = {c.API_VERSION: c for c in request._CLASSES if low <= c.API_VERSION <= high}
        self.key = next(iter(self.structs.values())).API_KEY
        self.low, self.high, self.method = min(self.structs), max(self.structs), method


APIS = {api.key: api for api in (Api(*r) for r in _REQUESTS)}
OFFERED = [(a.key, a.low, a.high) for a in APIS.values()]


def fill(schema, value):
    """Order named fields as a version's schema has them; fields that the version lacks are left out.

    Lets one answer, written with the names of the newest version, serve all versions.
    """
    if isinstance(schema, Schema):
        return tuple(fill(f, value[n]) for n, f in zip(schema.names, schema.fields, strict=True))
    if isinstance(schema, Array) and isinstance(schema.array_of, Schema) and value is not None:
        return [fill(schema.array_of, v) for v in value]
    return value

"""A consumer group: the classic protocol (join, sync, heartbeat, leave) with static membership (KIP-345)."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field

from streamai.broker.apis import (
    FENCED_INSTANCE,
    ILLEGAL_GENERATION,
    OK,
    REBALANCE_IN_PROGRESS,
    UNKNOWN_MEMBER,
)

EMPTY, PREPARING, COMPLETING, STABLE = "Empty", "Preparing", "Completing", "Stable"


@dataclass
class Member:
    """One consumer of the group, as it last joined."""

    id: str
    instance: str | None = None
    protocols: dict[str, bytes] = field(default_factory=dict)
    session_s: float = 10.0
    rebalance_s: float = 60.0
    seen_s: float = 0.0
    assignment: bytes = b""
    joining: asyncio.Future | None = None
    syncing: asyncio.Future | None = None


class Group:
    """Members, generation and state of one group. Single-threaded: lives in the broker's event loop."""

    def __init__(self, name: str, initial_delay_s: float) -> None:
        self.name, self.initial_delay_s = name, initial_delay_s
        self.generation, self.state = 0, EMPTY
        self.members: dict[str, Member] = {}
        self.leader: str | None = None
        self.protocol: str | None = None
        self.protocol_type = ""
        self._deadline_s = self._not_before_s = 0.0

    # --- requests

    def join(self, request, client_id: str):
        """The reply, or a future of them: complete when every member has joined again."""
        instance = getattr(request, "group_instance_id", None)
        known = next((m for m in self.members.values() if instance and m.instance == instance), None)
        if request.member_id:
            if known is not None and known.id != request.member_id:
                return self._joined(FENCED_INSTANCE, request.member_id)
            if request.member_id not in self.members:
                return self._joined(UNKNOWN_MEMBER, request.member_id)
        id_ = request.member_id or f"{client_id}-{uuid.uuid4()}"
        if known is not None and not request.member_id:
            return self._replace_static(known, id_, request)
        member = self.members.setdefault(id_, Member(id_, instance))
        unchanged = self._note(member, request)
        if self.state == STABLE and unchanged and id_ != self.leader:
            return self._joined(OK, id_)
        member.joining = asyncio.get_running_loop().create_future()
        future = member.joining  # prepare() may complete the join at once and clear it
        self.prepare(self.initial_delay_s if self.state == EMPTY else 0.0)
        return future

    def sync(self, request):
        """(error, assignment), or a future of it: complete when the leader has sent the assignment."""
        error = self.check(request.member_id, request.generation_id)
        if error:
            return error, b""
        if self.state == PREPARING:
            return REBALANCE_IN_PROGRESS, b""
        member = self.members[request.member_id]
        if member.id == self.leader and self.state == COMPLETING:
            for id_, assignment in request.group_assignment:
                if id_ in self.members:
                    self.members[id_].assignment = bytes(assignment)
            self.state = STABLE
            for m in self.members.values():
                _set(m.syncing, (OK, m.assignment))
                m.syncing = None
        if self.state == STABLE:
            return OK, member.assignment
        member.syncing = asyncio.get_running_loop().create_future()
        return member.syncing

    def check(self, member_id: str, generation: int, instance: str | None = None) -> int:
        """Error code of a request by this member in this generation; also a sign of life."""
        if member_id not in self.members:
            fenced = instance and any(m.instance == instance for m in self.members.values())
            return FENCED_INSTANCE if fenced else UNKNOWN_MEMBER
        self.members[member_id].seen_s = time.monotonic()
        return OK if generation == self.generation else ILLEGAL_GENERATION

    def heartbeat(self, request) -> int:
        instance = getattr(request, "group_instance_id", None)
        error = self.check(request.member_id, request.generation_id, instance)
        return error or (REBALANCE_IN_PROGRESS if self.state == PREPARING else OK)

    def leave(self, member_id: str) -> int:
        if self.members.pop(member_id, None) is None:
            return UNKNOWN_MEMBER
        if self.members:
            self.prepare()
        else:
            self.state = EMPTY
        return OK

    # --- rebalance

    def prepare(self, delay_s: float = 0.0) -> None:
        """Begin a rebalance: those who wait for an assignment are told to join again."""
        now = time.monotonic()
        if self.state != PREPARING:
            for m in self.members.values():
                _set(m.syncing, (REBALANCE_IN_PROGRESS, b""))
                m.syncing = None
            self.state = PREPARING
            self._deadline_s = now + max((m.rebalance_s for m in self.members.values()), default=0.0)
            self._not_before_s = now + delay_s
        self._complete_if_all_joined()

    def expire(self, now_s: float) -> None:
        """Drop members whose session has run out, and end a join that has waited long enough."""
        for m in list(self.members.values()):
            if m.joining is None and now_s - m.seen_s > m.session_s:
                self.leave(m.id)
        if self.state == PREPARING:
            self._complete_if_all_joined()

    def _complete_if_all_joined(self) -> None:
        if self.state != PREPARING:
            return
        now = time.monotonic()
        if now < self._not_before_s:
            wait_s = self._not_before_s - now + 0.001
            asyncio.get_running_loop().call_later(wait_s, self._complete_if_all_joined)
            return
        missing = [m for m in self.members.values() if m.joining is None]
        if missing and now < self._deadline_s:
            return
        for m in missing:
            del self.members[m.id]
        if not self.members:
            self.state = EMPTY
            return
        self.generation += 1
        self.state = COMPLETING
        common = set.intersection(*(set(m.protocols) for m in self.members.values()))
        first = next(iter(self.members.values()))
        self.protocol = next((p for p in first.protocols if p in common), "")
        if self.leader not in self.members:
            self.leader = first.id
        for m in self.members.values():
            future, m.joining, m.assignment, m.seen_s = m.joining, None, b"", now
            _set(future, self._joined(OK, m.id))

    def _replace_static(self, old: Member, id_: str, request):
        """A static member came back under a new id: it takes its old place, without a rebalance if stable."""
        self.members = {id_ if k == old.id else k: m for k, m in self.members.items()}
        _set(old.joining, self._joined(FENCED_INSTANCE, old.id))
        _set(old.syncing, (FENCED_INSTANCE, b""))
        led = self.leader == old.id
        old.id, old.joining, old.syncing = id_, None, None
        if led:
            self.leader = id_
        if self._note(old, request) and self.state == STABLE:
            # it is told that somebody else leads: it only asks for the assignment it had
            return self._joined(OK, id_, leader="" if led else None)
        old.joining = future = asyncio.get_running_loop().create_future()
        self.prepare()
        return future

    def _note(self, member: Member, request) -> bool:
        """Take over what a join says; True when its protocols are those of the last join."""
        protocols = {name: bytes(meta) for name, meta in request.group_protocols}
        unchanged = member.protocols == protocols
        member.protocols = protocols
        member.session_s = request.session_timeout / 1e3
        member.rebalance_s = getattr(request, "rebalance_timeout", request.session_timeout) / 1e3
        member.seen_s = time.monotonic()
        self.protocol_type = request.protocol_type
        return unchanged

    def _joined(self, error: int, id_: str, leader: str | None = None) -> dict:
        """A join reply; the leader's lists the members."""
        members = []
        if not error and leader is None and id_ == self.leader:
            members = [
                {
                    "member_id": m.id,
                    "group_instance_id": m.instance,
                    "member_metadata": m.protocols[self.protocol],
                }
                for m in self.members.values()
            ]
        return {
            "throttle_time_ms": 0,
            "error_code": error,
            "generation_id": -1 if error else self.generation,
            "group_protocol": "" if error else self.protocol,
            "leader_id": "" if error else self.leader if leader is None else leader,
            "member_id": id_,
            "members": members,
        }


def _set(future: asyncio.Future | None, result) -> None:
    if future is not None and not future.done():
        future.set_result(result)

"""The broker: connections, topics, and an answer to each request of apis.py."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import time

from aiokafka.protocol import admin
from aiokafka.protocol.types import Int16, Int32, String

from streamai.broker import apis
from streamai.broker.apis import OK
from streamai.broker.group import Group
from streamai.broker.log import Log

REQUEST_BYTES_MAX = 64 << 20
NODE = 1
_CLIENT = String("utf-8")


class Broker:
    """One Kafka node in memory. Use as a context manager (its own thread), or `await start()` in a loop.

    port                0 = any free one; `bootstrap` has the address
    partitions          of a topic that is created by being asked for
    initial_delay_s     how long a new group waits for more members before it first assigns

    `fault` is None, or fault(method name, request) -> None, "drop" (close the connection) or seconds to wait.
    """

    def __init__(
        self, port: int = 0, host: str = "127.0.0.1", partitions: int = 4, initial_delay_s: float = 0.05
    ) -> None:
        self.port, self.host, self.partitions, self.initial_delay_s = port, host, partitions, initial_delay_s
        self.topics: dict[str, list[Log]] = {}
        self.groups: dict[str, Group] = {}
        self.offsets: dict[
            tuple[str, str, int], tuple[int, str]
        ] = {}  # (group, topic, partition) -> (offset, note)
        self.fault = None
        self._next_producer_id = 1000
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def bootstrap(self) -> str:
        return f"{self.host}:{self.port}"

    # --- life cycle

    async def start(self) -> None:
        """Listen. OSError when the port is taken."""
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=1 << 22)
        self.port = self._server.sockets[0].getsockname()[1]
        self._expiry = self._loop.create_task(self._expire())

    async def stop(self) -> None:
        """Stop listening and drop every connection; what was stored is gone."""
        self._expiry.cancel()
        self._server.close()
        for writer in list(self._connections):
            writer.close()

    def __enter__(self) -> Broker:
        started = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            try:
                loop.run_until_complete(self.start())
            except OSError as e:
                failed.append(e)
                return
            finally:
                started.set()
            loop.run_forever()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

        self._thread = threading.Thread(target=run, name="broker", daemon=True)
        self._thread.start()
        started.wait()
        if failed:
            raise failed[0]
        return self

    def __exit__(self, *exc) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            for group in list(self.groups.values()):
                group.expire(time.monotonic())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests in order until it closes or asks for what we do not know."""
        self._connections.add(writer)
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > REQUEST_BYTES_MAX:
                    return
                buffer = io.BytesIO(await reader.readexactly(size))
                key, version = Int16.decode(buffer), Int16.decode(buffer)
                correlation, client = Int32.decode(buffer), _CLIENT.decode(buffer)
                reply = await self._answer(key, version, client or "", buffer)
                if reply is not None:
                    writer.write(struct.pack(">ii", len(reply) + 4, correlation) + reply)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, _Drop):
            pass  # the end of this connection, or of the broker
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, key: int, version: int, client: str, buffer: io.BytesIO) -> bytes | None:
        api = apis.APIS.get(key)
        if key == apis.API_VERSIONS and version > api.high:  # the protocol's way to say "ask again, lower"
            return admin.ApiVersionResponse_v0(apis.UNSUPPORTED_VERSION, apis.OFFERED).encode()
        if api is None or version not in api.structs:
            raise _Drop
        struct_ = api.structs[version]
        request = struct_.decode(buffer)
        if self.fault is not None:
            fault = self.fault(api.method, request)
            if fault == "drop":
                raise _Drop
            if fault:
                await asyncio.sleep(fault)
        answer = getattr(self, "_" + api.method)(request, client)
        if asyncio.iscoroutine(answer) or asyncio.isfuture(answer):
            answer = await answer
        if answer is None:
            return None
        response = struct_.RESPONSE_TYPE
        return response(
            *apis.fill(response.SCHEMA, {"throttle_time_ms": 0, "error_code": OK, **answer})
        ).encode()

    # --- topics

    def topic(self, name: str, partitions: int | None = None) -> list[Log]:
        """The logs of a topic, created when there is none. Call in the broker's loop, or before it starts."""
        if name not in self.topics:
            self.topics[name] = [Log() for _ in range(partitions or self.partitions)]
        return self.topics[name]

    def _log(self, topic: str, partition: int) -> Log | None:
        logs = self.topics.get(topic, ())
        return logs[partition] if 0 <= partition < len(logs) else None

    def _api_versions(self, request, client: str) -> dict:
        versions = [{"api_key": k, "min_version": a, "max_version": b} for k, a, b in apis.OFFERED]
        return {"api_versions": versions}

    def _metadata(self, request, client: str) -> dict:
        names = request.topics
        create = getattr(request, "allow_auto_topic_creation", True)
        if names is None or (request.API_VERSION == 0 and not names):
            names = list(self.topics)
        topics = []
        for name in names:
            logs = self.topic(name) if create else self.topics.get(name, [])
            partitions = [
                {
                    "error_code": OK,
                    "partition": i,
                    "leader": NODE,
                    "replicas": [NODE],
                    "isr": [NODE],
                    "offline_replicas": [],
                }
                for i in range(len(logs))
            ]
            error = OK if logs else apis.UNKNOWN_TOPIC
            topics.append(
                {"error_code": error, "topic": name, "is_internal": False, "partitions": partitions}
            )
        node = {"node_id": NODE, "host": self.host, "port": self.port, "rack": None}
        return {"brokers": [node], "cluster_id": "streamai", "controller_id": NODE, "topics": topics}

    def _create_topics(self, request, client: str) -> dict:
        errors = []
        for name, partitions, _replicas, _assigned, _config in request.create_topic_requests:
            error = OK
            if name in self.topics:
                error = apis.TOPIC_EXISTS
            elif partitions == 0 or partitions < -1:
                error = apis.INVALID_PARTITIONS
            else:
                self.topic(name, partitions if partitions > 0 else None)
            errors.append({"topic": name, "error_code": error, "error_message": None})
        return {"topic_errors": errors}

    def _delete_topics(self, request, client: str) -> dict:
        errors = [
            {"topic": t, "error_code": OK if self.topics.pop(t, None) else apis.UNKNOWN_TOPIC}
            for t in request.topics
        ]
        return {"topic_error_codes": errors}

    # --- records

    def _init_producer_id(self, request, client: str) -> dict:
        if request.transactional_id is not None:
            return {"error_code": apis.TRANSACTIONS_REFUSED, "producer_id": -1, "producer_epoch": -1}
        self._next_producer_id += 1
        return {"producer_id": self._next_producer_id, "producer_epoch": 0}

    def _produce(self, request, client: str) -> dict | None:
        topics = []
        for topic, partitions in request.topics:
            done = []
            for partition, raw in partitions:
                log = self._log(topic, partition)
                error, offset = log.append(raw) if log is not None else (apis.UNKNOWN_TOPIC, -1)
                done.append(
                    {
                        "partition": partition,
                        "error_code": error,
                        "offset": offset,
                        "timestamp": -1,
                        "log_start_offset": 0,
                    }
                )
            topics.append({"topic": topic, "partitions": done})
        return {"topics": topics} if request.required_acks else None

    async def _fetch(self, request, client: str) -> dict:
        """Long poll: answers at min_bytes, at an error, or after max_wait_time ms."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.max_wait_time / 1e3
        while True:
            topics, size, logs, error = self._read(request)
            left = deadline - loop.time()
            if size >= request.min_bytes or error or left <= 0:
                return {"session_id": 0, "topics": topics}
            waiter = loop.create_future()
            for log in logs:
                log.waiters.add(waiter)
            timer = loop.call_later(left, lambda w=waiter: w.done() or w.set_result(None))
            await waiter
            timer.cancel()
            for log in logs:
                log.waiters.discard(waiter)

    def _read(self, request) -> tuple[list, int, list[Log], bool]:
        """(topics of the reply, bytes in it, logs that were asked for, whether one has an error)."""
        topics, size, logs, failed = [], 0, [], False
        left = getattr(request, "max_bytes", REQUEST_BYTES_MAX)
        for topic, partitions in request.topics:
            found = []
            for row in partitions:
                partition, max_bytes = row[0], row[-1]
                offset = row[2] if request.API_VERSION >= 9 else row[1]
                log, data, error = self._log(topic, partition), b"", OK
                if log is None:
                    error = apis.UNKNOWN_TOPIC
                elif not log.start_offset <= offset <= log.next_offset:
                    error = apis.OFFSET_OUT_OF_RANGE
                else:
                    logs.append(log)
                    if offset < log.next_offset and size < left:
                        data = log.read(offset, max_bytes)
                failed |= error != OK
                size += len(data)
                end = log.next_offset if log is not None else -1
                found.append(
                    {
                        "partition": partition,
                        "error_code": error,
                        "highwater_offset": end,
                        "last_stable_offset": end,
                        "log_start_offset": log.start_offset if log is not None else -1,
                        "aborted_transactions": None,
                        "preferred_read_replica": -1,
                        "message_set": data,
                    }
                )
            topics.append({"topics": topic, "partitions": found})
        return topics, size, logs, failed

    def _list_offsets(self, request, client: str) -> dict:
        topics = []
        for topic, partitions in request.topics:
            found = []
            for row in partitions:
                partition, time_ms = row[0], row[1]
                log, error, offset, at = self._log(topic, partition), OK, -1, -1
                if log is None:
                    error = apis.UNKNOWN_TOPIC
                elif time_ms == -1:
                    offset = log.next_offset
                elif time_ms == -2:
                    offset = log.start_offset
                else:
                    offset, at = log.offset_at(time_ms)
                found.append(
                    {
                        "partition": partition,
                        "error_code": error,
                        "timestamp": at,
                        "offset": offset,
                        "offsets": [offset],
                    }
                )
            topics.append({"topic": topic, "partitions": found})
        return {"topics": topics}

    # --- groups

    def _group(self, name: str) -> Group:
        if name not in self.groups:
            self.groups[name] = Group(name, self.initial_delay_s)
        return self.groups[name]

    def _find_coordinator(self, request, client: str) -> dict:
        return {"error_message": None, "coordinator_id": NODE, "host": self.host, "port": self.port}

    def _join_group(self, request, client: str):
        return self._group(request.group).join(request, client)

    async def _sync_group(self, request, client: str) -> dict:
        answer = self._group(request.group).sync(request)
        error, assignment = await answer if asyncio.isfuture(answer) else answer
        return {"error_code": error, "member_assignment": assignment}

    def _heartbeat(self, request, client: str) -> dict:
        return {"error_code": self._group(request.group).heartbeat(request)}

    def _leave_group(self, request, client: str) -> dict:
        return {"error_code": self._group(request.group).leave(request.member_id)}

    def _list_groups(self, request, client: str) -> dict:
        return {"groups": [{"group": g.name, "protocol_type": g.protocol_type} for g in self.groups.values()]}

    def _commit_offsets(self, request, client: str) -> dict:
        error = OK
        if request.consumer_group_generation_id >= 0:
            group = self._group(request.consumer_group)
            error = group.check(request.consumer_id, request.consumer_group_generation_id)
        topics = []
        for topic, partitions in request.topics:
            for partition, offset, note in partitions:
                if not error:
                    self.offsets[request.consumer_group, topic, partition] = (offset, note)
            topics.append(
                {"topic": topic, "partitions": [{"partition": p[0], "error_code": error} for p in partitions]}
            )
        return {"topics": topics}

    def _fetch_offsets(self, request, client: str) -> dict:
        group, asked = request.consumer_group, request.topics
        if asked is None:
            by_topic: dict[str, list[int]] = {}
            for g, topic, partition in self.offsets:
                if g == group:
                    by_topic.setdefault(topic, []).append(partition)
            asked = list(by_topic.items())
        topics = []
        for topic, partitions in asked:
            found = []
            for p in partitions:
                offset, note = self.offsets.get((group, topic, p), (-1, ""))
                found.append({"partition": p, "offset": offset, "metadata": note, "error_code": OK})
            topics.append({"topic": topic, "partitions": found})
        return {"topics": topics}


class _Drop(Exception):
    """Close the connection."""

"""A small Kafka-compatible broker for the demo and the tests: one node, memory only.

    with Broker() as broker: ...              in a thread of this process; broker.bootstrap
    with start_broker_process() as broker: ...  a process of its own
    python -m streamai.broker --port 9092

It speaks the protocol that aiokafka and librdkafka use: produce (idempotent too), long-poll fetch, list
offsets by time, classic consumer groups with static membership, offset commits, topic creation. It has no
replication, no disk, no retention, no compaction and no transactions: it shows that our logic keeps to the
protocol, not what a cluster does under failure.
"""

from streamai.broker.broker import Broker
from streamai.broker.process import start_broker_process

__all__ = ["Broker", "start_broker_process"]

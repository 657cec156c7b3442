"""Settings of encryption and log-in, as they reach the Kafka clients."""

import asyncio
import ssl

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from streamai import settings
from streamai.errors import SettingsError
from streamai.live.connection import connection


def options(**env):
    return connection(settings.load({f"STREAMAI_{name}": value for name, value in env.items()}).kafka)


def test_plain():
    assert options(BOOTSTRAP="a:9092,b:9092") == {
        "bootstrap_servers": "a:9092,b:9092",
        "security_protocol": "PLAINTEXT",
    }
    assert connection(settings.Kafka(bootstrap="a:1"), "b:2")["bootstrap_servers"] == "b:2"


def test_no_address_says_where_to_write_one():
    with pytest.raises(SettingsError, match="STREAMAI_BOOTSTRAP"):
        options()


def test_encryption_checks_who_answers():
    given = options(BOOTSTRAP="a:9093", SECURITY_PROTOCOL="SSL")
    context = given.pop("ssl_context")
    assert given == {"bootstrap_servers": "a:9093", "security_protocol": "SSL"}
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_log_in_with_a_password_of_a_file(tmp_path, protocol, mechanism):
    (tmp_path / "secret").write_text("hunter2\n")
    given = options(
        BOOTSTRAP="a:9093", SECURITY_PROTOCOL=protocol, SASL_MECHANISM=mechanism, SASL_USERNAME="me",
        SASL_PASSWORD_FILE=str(tmp_path / "secret"),
    )  # fmt: skip
    assert (given["sasl_mechanism"], given["sasl_plain_username"]) == (mechanism, "me")
    assert given["sasl_plain_password"] == "hunter2"
    assert isinstance(given.get("ssl_context"), ssl.SSLContext) == (protocol == "SASL_SSL")

    async def build():
        """The clients take every option; they connect only when started."""
        AIOKafkaConsumer("clicks", **given)
        await AIOKafkaProducer(**given).stop()

    asyncio.run(build())


@pytest.mark.parametrize("name", ["SSL_CAFILE", "SSL_CERTFILE"])
def test_a_certificate_that_cannot_be_read(tmp_path, name):
    (tmp_path / "bad.pem").write_text("nothing")
    for path in (tmp_path / "none.pem", tmp_path / "bad.pem"):
        with pytest.raises(SettingsError, match="PEM"):
            options(BOOTSTRAP="a:9093", SECURITY_PROTOCOL="SSL", **{name: str(path)})

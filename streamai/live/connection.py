"""Settings -> the options of a Kafka client."""

from __future__ import annotations

from aiokafka.helpers import create_ssl_context

from streamai.errors import SettingsError
from streamai.settings import Kafka


def connection(kafka: Kafka, bootstrap: str = "") -> dict:
    """Options that every aiokafka client takes: address, encryption, log-in.

    bootstrap stands for the setting when given. SettingsError without an address, or with a bad certificate.
    """
    address = bootstrap or kafka.bootstrap
    if not address:
        raise SettingsError(
            "no Kafka given: set STREAMAI_BOOTSTRAP=host:port, or [kafka] bootstrap in streamai.toml; "
            "`streamai demo` starts a broker of its own"
        )
    options = {"bootstrap_servers": address, "security_protocol": kafka.security_protocol}
    if kafka.security_protocol.endswith("SSL"):
        try:
            options["ssl_context"] = create_ssl_context(
                cafile=kafka.ssl_cafile or None,
                certfile=kafka.ssl_certfile or None,
                keyfile=kafka.ssl_keyfile or None,
            )
        except OSError as e:
            raise SettingsError(
                f"kafka.ssl_cafile, ssl_certfile or ssl_keyfile cannot be read as PEM: {e}"
            ) from e
    if kafka.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.password(),
        }
    return options

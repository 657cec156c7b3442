"""Settings of a worker: environment first, then streamai.toml, then the default. Read once, then passed.

    STREAMAI_STATE__ROWS_MAX=200000      the section, two underscores, the name
    STREAMAI_BOOTSTRAP=host:9092         the name alone, where only one section has it

A name that does not exist is an error, so that a misspelt setting cannot be silently ignored.
`streamai config` prints every value and where it came from.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from streamai.errors import SettingsError

PREFIX = "STREAMAI_"
FILE = "streamai.toml"
NOT_SETTINGS = frozenset({"STREAMAI_DATA", "STREAMAI_SETTINGS", "STREAMAI_KERNEL_CACHE"})
"""Read by others: the folder of shared data, the path of the settings file, numba's cache folder."""


def _setting(default, help: str, *, low=None, high=None, choices=None, secret: bool = False):
    about = {"help": help, "low": low, "high": high, "choices": choices, "secret": secret}
    return field(default=default, metadata=about, repr=not secret)


@dataclass(frozen=True)
class Kafka:
    """Where the broker is, how to log in, and as whom to read."""

    bootstrap: str = _setting("", "host:port[,host:port]; empty = none given")
    security_protocol: str = _setting(
        "PLAINTEXT", "how to connect", choices=("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
    )
    sasl_mechanism: str = _setting(
        "PLAIN", "how to log in", choices=("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    )
    sasl_username: str = _setting("", "user")
    sasl_password: str = _setting("", "password", secret=True)
    sasl_password_file: str = _setting("", "file whose first line is the password")
    ssl_cafile: str = _setting("", "certificates to trust (PEM); empty = the system's")
    ssl_certfile: str = _setting("", "own certificate (PEM)")
    ssl_keyfile: str = _setting("", "key of the own certificate (PEM)")
    group: str = _setting("", "consumer group; empty = the flow's name")
    instance: str = _setting("", "name of this worker for static membership; empty = dynamic")
    session_timeout_ms: int = _setting(10_000, "silence after which partitions move", low=1_000, high=600_000)
    fetch_max_wait_ms: int = _setting(50, "longest wait of a fetch", low=1, high=10_000)
    create_topics: bool = _setting(True, "make output topics that do not exist")
    idempotence: bool = _setting(True, "the broker drops what a producer repeats; off for brokers without it")
    replication: int = _setting(1, "copies of a topic that is made", low=1, high=10)

    def password(self) -> str:
        """The password, from `sasl_password` or the first line of `sasl_password_file`."""
        if self.sasl_password or not self.sasl_password_file:
            return self.sasl_password
        try:
            text = pathlib.Path(self.sasl_password_file).read_text(encoding="utf-8")
        except OSError as e:
            raise SettingsError(f"kafka.sasl_password_file: cannot read {e.filename}: {e.strerror}") from e
        return text.split("\n", 1)[0].rstrip("\r")


@dataclass(frozen=True)
class State:
    """Rows in memory and their checkpoints on disk."""

    folder: str = _setting(".streamai/state", "where the stores lie")
    shared: str = _setting("", "where workers exchange what they count (Flow.merge); empty = in `folder`")
    tables_hours: float = _setting(2.0, "how long merged tables are kept for replays", low=0.1, high=10_000.0)
    rows_max: int = _setting(65_536, "rows in memory a partition", low=8, high=100_000_000)
    checkpoint_ms: int = _setting(50, "a checkpoint this often, if writing is cheap", low=1, high=3_600_000)
    checkpoint_events: int = _setting(65_536, "and after so many events at most", low=1, high=100_000_000)
    fsync_ms: int = _setting(1_000, "fsync (against a power cut) this often", low=0, high=3_600_000)


@dataclass(frozen=True)
class Engine:
    """The step: how many events at once, and for how long."""

    batch_max: int = _setting(256, "most events in one step", low=1, high=65_536)
    budget_ms: float = _setting(0.0, "time an event may take; 0 = what the flow says", low=0.0, high=60_000.0)
    shadow: str = _setting("", "weights file that scores too, for the topic OUTPUT.shadow; empty = none")


@dataclass(frozen=True)
class Web:
    """Health, metrics and statistics of a worker."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 = every one")
    port: int = _setting(6066, "port; 0 = no web endpoint", low=0, high=65_535)


SECTIONS = {"kafka": Kafka, "state": State, "engine": Engine, "web": Web}


@dataclass(frozen=True)
class Settings:
    """All settings. `origin["state.rows_max"]` says where a value came from."""

    kafka: Kafka = Kafka()
    state: State = State()
    engine: Engine = Engine()
    web: Web = Web()
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)

    def rows(self) -> list[tuple[str, object, str, str]]:
        """(name, value, origin, help) of every setting; a secret that is set shows as ***."""
        out = []
        for section in SECTIONS:
            part = getattr(self, section)
            for f in fields(part):
                value = getattr(part, f.name)
                shown = "***" if f.metadata["secret"] and value else value
                name = f"{section}.{f.name}"
                out.append((name, shown, self.origin.get(name, "default"), f.metadata["help"]))
        return out


def _names() -> dict[str, object]:
    return {f"{s}.{f.name}": f for s, part in SECTIONS.items() for f in fields(part)}


def _env_names() -> dict[str, str]:
    """Environment variable -> setting: the long form of each, the short form where it is unique."""
    names = list(_names())
    out = {PREFIX + n.replace(".", "__").upper(): n for n in names}
    last = [n.split(".")[1] for n in names]
    out.update({PREFIX + n.split(".")[1].upper(): n for n in names if last.count(n.split(".")[1]) == 1})
    return out


def variables() -> frozenset[str]:
    """Every environment variable that is a setting, for who starts a process with settings of its own."""
    return frozenset(_env_names()) | {"STREAMAI_SETTINGS"}


def _unknown(where: str, name: str, known) -> SettingsError:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    return SettingsError(f"{where}: {name} is no setting; {guess}`streamai config` lists them all")


def _number(text: str, kind: type):
    try:
        return kind(text.replace("_", ""))
    except ValueError:
        return text


def _from_text(text: str, kind: type):
    """A value of the environment as `kind`; what does not fit is returned as text, for `_check` to refuse."""
    if kind is bool:
        word = text.strip().lower()
        if word in ("1", "true", "yes", "on"):
            return True
        return False if word in ("0", "false", "no", "off") else text
    return text if kind is str else _number(text.strip(), kind)


def _check(where: str, name: str, f, value):
    """`value`, when it has the type and the range of setting `f`."""
    kind, about = type(f.default), f.metadata
    if kind is float and type(value) is int:
        value = float(value)
    shown = "a secret" if about["secret"] else repr(value)
    if type(value) is not kind:
        raise SettingsError(f"{where}: {name} is {shown}; expected {kind.__name__} ({about['help']})")
    if about["choices"] and value not in about["choices"]:
        raise SettingsError(f"{where}: {name} is {shown}; expected one of {', '.join(about['choices'])}")
    low, high = about["low"], about["high"]
    if low is not None and not low <= value <= high:  # also refuses NaN
        raise SettingsError(f"{where}: {name} is {shown}; expected {low} to {high} ({about['help']})")
    return value


def _of_file(path: pathlib.Path, known: dict) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise SettingsError(f"{path}: cannot be read: {e}") from e
    out = {}
    for section, table in tables.items():
        if section not in SECTIONS or not isinstance(table, dict):
            raise _unknown(str(path), section, [*SECTIONS, *known])
        for key, value in table.items():
            name = f"{section}.{key}"
            if name not in known:
                raise _unknown(str(path), name, known)
            out[name] = _check(str(path), name, known[name], value)
    return out


def load(env: Mapping[str, str] | None = None, path: str | os.PathLike | None = None) -> Settings:
    """Read the settings. `env` defaults to the process's environment.

    The file is `path`, else $STREAMAI_SETTINGS, else streamai.toml here, where there is one;
    a file that was named must exist. Raises SettingsError for an unknown name, a wrong type, a bad file.
    """
    env = os.environ if env is None else env
    known = _names()
    named = path or env.get("STREAMAI_SETTINGS")
    file = pathlib.Path(named or FILE)
    values: dict[str, object] = {}
    origin: dict[str, str] = {}
    if named or file.exists():
        values = _of_file(file, known)
        origin = dict.fromkeys(values, str(file))
    env_names = _env_names()
    for variable in sorted(env, key=lambda v: "__" in v):  # the long form after the short one: it wins
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        if variable not in env_names:
            raise _unknown("environment", variable, env_names)
        name = env_names[variable]
        f = known[name]
        values[name] = _check("environment", variable, f, _from_text(env[variable], type(f.default)))
        origin[name] = variable
    parts = {
        section: part(**{f.name: values[n] for f in fields(part) if (n := f"{section}.{f.name}") in values})
        for section, part in SECTIONS.items()
    }
    return Settings(**parts, origin=origin)

"""Settings: order of sources, types, ranges, unknown names, secrets."""

import dataclasses

import pytest

from streamai import settings
from streamai.errors import SettingsError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """No streamai.toml of the project's folder can reach a test."""
    monkeypatch.chdir(tmp_path)


def write(tmp_path, text):
    path = tmp_path / "streamai.toml"
    path.write_text(text)
    return path


def test_defaults():
    s = settings.load({})
    assert s == settings.Settings()
    assert s.state.rows_max == 65_536
    assert {origin for _, _, origin, _ in s.rows()} == {"default"}


def test_environment_beats_file_beats_default(tmp_path):
    path = write(tmp_path, "[state]\nrows_max = 100\nfsync_ms = 7\n[kafka]\nbootstrap = 'file:1'\n")
    s = settings.load({"STREAMAI_STATE__ROWS_MAX": "200", "STREAMAI_BOOTSTRAP": "env:1"}, path)
    assert (s.state.rows_max, s.state.fsync_ms, s.kafka.bootstrap) == (200, 7, "env:1")
    assert s.state.checkpoint_ms == settings.State().checkpoint_ms
    assert s.origin["state.rows_max"] == "STREAMAI_STATE__ROWS_MAX"
    assert s.origin["state.fsync_ms"] == str(path)


def test_file_is_found_in_the_current_folder(tmp_path):
    write(tmp_path, "[web]\nport = 7000\n")
    assert settings.load({}).web.port == 7000


def test_named_file_must_exist():
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        settings.load({"STREAMAI_SETTINGS": "nowhere.toml"})


def test_long_form_wins_over_short_form():
    env = {"STREAMAI_KAFKA__BOOTSTRAP": "long:1", "STREAMAI_BOOTSTRAP": "short:1"}
    assert settings.load(env).kafka.bootstrap == "long:1"
    assert settings.load(dict(reversed(env.items()))).kafka.bootstrap == "long:1"


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("STREAMAI_STATE__ROW_MAX", "STREAMAI_STATE__ROWS_MAX"),
        ("STREAMAI_BOOTSTRP", "STREAMAI_BOOTSTRAP"),
        ("STREAMAI_KAFKA__SASL_PASWORD", "STREAMAI_KAFKA__SASL_PASSWORD"),
    ],
)
def test_unknown_variable_proposes_the_nearest(variable, near):
    with pytest.raises(SettingsError, match=f"{variable} is no setting; did you mean {near}"):
        settings.load({variable: "1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stat]\nrows_max = 1\n", "stat is no setting; did you mean state"),
        ("[state]\nrow_max = 1\n", "did you mean state.rows_max"),
        ("rows_max = 1\n", "rows_max is no setting; did you mean state.rows_max"),
        ("[state]\nrows_max = '9'\n", "expected int"),
        ("[state]\nrows_max = true\n", "expected int"),
        ("[state]\nrows_max = 1\n", "expected 8 to"),
        ("[kafka]\ncreate_topics = 1\n", "expected bool"),
        ("[kafka]\nsecurity_protocol = 'TLS'\n", "expected one of PLAINTEXT, SSL"),
        ("[state\n", "cannot be read"),
    ],
)
def test_bad_file(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        settings.load({}, write(tmp_path, text))


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("STREAMAI_CREATE_TOPICS", "off", False),
        ("STREAMAI_CREATE_TOPICS", "True", True),
        ("STREAMAI_BUDGET_MS", "2.5", 2.5),
        ("STREAMAI_ROWS_MAX", "1_000_000", 1_000_000),
        ("STREAMAI_GROUP", "7", "7"),
    ],
)
def test_text_of_the_environment(variable, text, value):
    s = settings.load({variable: text})
    assert value in [v for _, v, origin, _ in s.rows() if origin == variable]


@pytest.mark.parametrize(
    ("variable", "text"), [("STREAMAI_CREATE_TOPICS", "maybe"), ("STREAMAI_BUDGET_MS", "nan")]
)
def test_bad_text_of_the_environment(variable, text):
    with pytest.raises(SettingsError, match=variable):
        settings.load({variable: text})


def test_others_variables_are_left_alone():
    env = {"STREAMAI_DATA": "x", "PATH": "y", "STREAMAI_KERNEL_CACHE": "z"}
    assert settings.load(env) == settings.Settings()


def test_secrets_do_not_show():
    s = settings.load({"STREAMAI_SASL_PASSWORD": "hunter2"})
    assert s.kafka.password() == "hunter2"
    assert "hunter2" not in repr(s) and "hunter2" not in str(s.rows())


def test_password_of_a_file(tmp_path):
    (tmp_path / "secret").write_text("hunter2\n")
    s = settings.load({"STREAMAI_SASL_PASSWORD_FILE": str(tmp_path / "secret")})
    assert s.kafka.password() == "hunter2"
    with pytest.raises(SettingsError, match="sasl_password_file"):
        settings.Kafka(sasl_password_file=str(tmp_path / "none")).password()


def test_every_setting_is_frozen_and_explained():
    for part in settings.SECTIONS.values():
        assert dataclasses.fields(part)
        for f in dataclasses.fields(part):
            assert f.metadata["help"], f.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.State().rows_max = 1

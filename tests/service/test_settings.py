"""One option, four places: flag, variable, file, default, in that order; and sentences that say which was wrong."""

import os
import re
from pathlib import Path

import pytest

from lengthwise import settings as settings_module
from lengthwise.errors import ConfigurationError
from lengthwise.settings import CONFIG_VARIABLE, PREFIX, Settings, available_cores, bundled_models, flag


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "lengthwise.toml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    return file


def test_the_defaults_are_those_of_the_contract():
    loaded = Settings.load()
    assert (loaded.host, loaded.port, loaded.models) == ("127.0.0.1", 8000, bundled_models())
    assert (loaded.max_batch_rows, loaded.max_batch_cost_steps, loaded.max_queue_cost_steps) == (64, 16_384, 1_000_000)
    assert (loaded.max_body_bytes, loaded.max_sequences) == (16_777_216, 1024)
    assert (loaded.max_wait_ms, loaded.default_timeout_ms, loaded.drain_seconds) == (0, 30_000, 30)
    assert (loaded.log_level, loaded.log_format) == ("info", "text")
    assert loaded.runners == available_cores()


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(config: Path, monkeypatch: pytest.MonkeyPatch):
    config.write_text("port = 1001\nmax_wait_ms = 3.5\nrunners = 3\n")
    monkeypatch.setenv("LENGTHWISE_PORT", "1002")
    monkeypatch.setenv("LENGTHWISE_RUNNERS", "2")
    loaded = Settings.load(port=1003, host=None)
    assert (loaded.port, loaded.runners, loaded.max_wait_ms, loaded.host) == (1003, 2, 3.5, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("port", "0"), ("port", "65536"), ("port", "eighty"), ("port", ""), ("runners", "0")),
        *(("max_batch_rows", "0"), ("max_wait_ms", "nan"), ("max_wait_ms", "-1"), ("default_timeout_ms", "0")),
        *(("default_timeout_ms", "inf"), ("drain_seconds", "inf"), ("max_sequences", "1.5"), ("log_level", "loud")),
        ("log_format", "xml"),
    ],
)
def test_a_variable_out_of_bounds_is_named_with_what_it_is(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PREFIX + name.upper(), value)
    with pytest.raises(ConfigurationError) as wrong:
        Settings.load()
    assert f"LENGTHWISE_{name.upper()}: " in str(wrong.value)
    assert f", got {value!r}" in str(wrong.value)


def test_a_wrong_flag_is_named_as_the_flag_though_a_variable_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LENGTHWISE_MAX_WAIT_MS", "1")
    with pytest.raises(ConfigurationError, match=r"^--max-wait-ms: .*, got -1$"):
        Settings.load(max_wait_ms=-1)


def test_a_wrong_line_of_the_file_is_named_as_such(config: Path):
    config.write_text("max_sequences = -5\n")
    with pytest.raises(ConfigurationError, match="max_sequences in the configuration file"):
        Settings.load()


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LENGTHWISE_PORT", "0")
    with pytest.raises(ConfigurationError):
        Settings.load(runners=0)


@pytest.mark.parametrize(
    ("line", "meant"),
    [("prot = 1", "port"), ("max_batch_row = 1", "max_batch_rows"), ("max-wait-ms = 1", "max_wait_ms")],
)
def test_an_unknown_line_of_the_file_is_refused_with_the_nearest_that_there_is(line: str, meant: str, config: Path):
    config.write_text(f"{line}\n")
    said = rf"no option belongs to the key {line[:-4]} in the configuration file {config}; did you mean {meant}\?; `len"
    with pytest.raises(ConfigurationError, match=said):
        Settings.load()


def test_an_unknown_variable_is_refused_with_the_nearest_that_there_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LENGTHWISE_MAX_BATCH_ROW", "8000")
    said = (
        r"variable LENGTHWISE_MAX_BATCH_ROW; did you mean LENGTHWISE_MAX_BATCH_ROWS\?; `lengthwise serve --help` lists"
    )
    with pytest.raises(ConfigurationError, match=said):
        Settings.load()
    monkeypatch.delenv("LENGTHWISE_MAX_BATCH_ROW")
    monkeypatch.setenv("LENGTHWISE_COLOUR", "8000")
    with pytest.raises(ConfigurationError):
        Settings.load()


WRONG = ['"abc"', '""', "1.5", "-1", "[1]", "{a = 1}", "true", "nan", "inf", "99999999999999999999", "[]", "1979-05-27"]
STRANGE = re.compile(r"Input|Extra|Tuple|Value error|valid (integer|string|number|boolean|tuple)|pydantic|class '")


def refusal(**flags: str) -> str:
    """Why the settings are refused; nothing where they are not."""
    try:
        Settings.load(**flags)
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", Settings.model_fields)
def test_whatever_stands_at_a_key_of_the_file_is_refused_in_plain_words(name: str, config: Path):
    said = []
    for value in WRONG:
        config.write_text(f"{name} = {value}\n")
        said.append(refusal())
    assert any(said)
    assert [text for text in said if text and (name not in text or STRANGE.search(text))] == []


@pytest.mark.parametrize("name", Settings.model_fields)
def test_whatever_a_variable_or_a_flag_says_is_refused_in_plain_words(name: str, monkeypatch: pytest.MonkeyPatch):
    for value in ("", "abc", "1.5", "-1", "[1]", "nan", "inf", "9" * 30, "yes"):
        by_flag = refusal(**{name: value})
        monkeypatch.setenv(PREFIX + name.upper(), value)
        by_variable = refusal()
        monkeypatch.delenv(PREFIX + name.upper())
        for said, source in ((by_flag, flag(name)), (by_variable, PREFIX + name.upper())):
            assert not said or source in said or f"{name} (" in said or said.startswith(f"{name} ")
            assert not STRANGE.search(said)


def test_two_ports_that_are_one_are_named():
    with pytest.raises(ConfigurationError, match=r"port \(8000, the default\) and admin_port \(8000\) must differ"):
        Settings.load(admin_port=8000)


def test_a_file_that_is_not_there_is_refused(config: Path):
    with pytest.raises(ConfigurationError):
        Settings.load()


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe"], ids=["no TOML", "no text"])
def test_a_file_that_is_no_toml_is_refused(config: Path, content: bytes):
    config.write_bytes(content)
    with pytest.raises(ConfigurationError):
        Settings.load()


def test_a_queue_that_holds_less_than_a_batch_is_refused():
    said = r"max_queue_cost_steps \(100\) must be at least max_batch_cost_steps \(16384, the default\)"
    with pytest.raises(ConfigurationError, match=said):
        Settings.load(max_queue_cost_steps=100)
    with pytest.raises(ConfigurationError, match=r"\(1000000, the default\) must be at least .* \(2000000\)"):
        Settings.load(max_batch_cost_steps=2_000_000)


def test_a_key_without_a_certificate_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="tls_key_file needs tls_cert_file"):
        Settings.load(tls_key_file=tmp_path / "key.pem")


def test_the_flag_of_an_option():
    assert flag("max_queue_cost_steps") == "--max-queue-cost-steps"


# Cores


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n"}, None),
    ],
)
def test_the_quota_of_a_cgroup_of_either_version(files: dict[str, str], quota: float | None, tmp_path: Path):
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert settings_module.cgroup_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (8.0, 4), (2.5, 2), (0.5, 1)])
def test_cores_are_those_of_the_affinity_or_fewer_by_quota(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(settings_module, "cgroup_quota", lambda root: quota)
    assert available_cores() == cores


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(settings_module, "cgroup_quota", lambda root: None)
    assert available_cores() == 3


@pytest.mark.parametrize(("given", "share"), [("off", 0.0), ("0", 0.0), ("1", 1.0), ("0.01", 0.01)])
def test_the_access_log_is_off_or_a_share(given: str, share: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LENGTHWISE_ACCESS_LOG", given)
    assert Settings.load().access_log == share


@pytest.mark.parametrize("given", ["on", "-0.1", "1.1", "nan"])
def test_a_share_is_from_0_to_1(given: str):
    with pytest.raises(ConfigurationError, match="--access-log"):
        Settings.load(access_log=given)


def test_origins_stand_with_commas_between_them_in_a_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LENGTHWISE_CORS_ORIGINS", "https://a.example, http://localhost:3000,")
    assert Settings.load().cors_origins == ("https://a.example", "http://localhost:3000")


def test_origins_are_a_list_in_the_file(config: Path):
    config.write_text('cors_origins = ["https://a.example"]\n')
    assert Settings.load().cors_origins == ("https://a.example",)

"""One option, four places: flag, variable, file, default, in that order; and sentences that say which was wrong."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from lengthwise import files
from lengthwise.errors import ConfigurationError
from lengthwise.files import available_cores
from lengthwise.settings import CONFIG_VARIABLE, PREFIX, REMOVED, Settings, bundled_models, flag


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


@pytest.mark.parametrize(
    ("flags", "variables", "line", "named"),
    [
        ({"max_wait_ms": -1}, {"MAX_WAIT_MS": "1"}, "", r"^--max-wait-ms: .*, got -1$"),
        ({}, {}, "max_sequences = -5", "max_sequences in the configuration file"),
        ({"runners": 0}, {"PORT": "0"}, "", "LENGTHWISE_PORT.*; --runners"),
        ({}, {}, "prot = 1", r"prot .* did you mean port\?"),
        ({}, {}, "max_batch_row = 1", r"max_batch_row .* did you mean max_batch_rows\?"),
        ({}, {}, "max-wait-ms = 1", r"max-wait-ms .* did you mean max_wait_ms\?"),
        ({}, {"MAX_BATCH_ROW": "8"}, "", r"LENGTHWISE_MAX_BATCH_ROW; did you mean LENGTHWISE_MAX_BATCH_ROWS\?"),
        ({}, {"COLOUR": "8000"}, "", "LENGTHWISE_COLOUR; `lengthwise serve --help`"),
        ({"admin_port": 8000}, {}, "", r"port \(8000, the default\) and admin_port \(8000\)"),
        ({"max_queue_cost_steps": 100}, {}, "", r"steps \(100\) .* max_batch_cost_steps \(16384, the default\)"),
        ({"max_batch_cost_steps": 2_000_000}, {}, "", r"\(1000000, the default\) .* \(2000000\)"),
        ({"tls_key_file": Path("key.pem")}, {}, "", "tls_key_file needs tls_cert_file"),
        ({}, {"RECORD_SHARE": "0.5"}, "", "record_share needs record, the folder"),
        *(({}, {name: ""}, "", f"_{name}: must not be empty") for name in ("HOST", "RECORD", "MODELS", "CACHE")),
        *(({"access_log": share}, {}, "", "--access-log") for share in ("on", "-0.1", "1.1", "nan")),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(
    flags: dict[str, Any],
    variables: dict[str, str],
    line: str,
    named: str,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config.write_text(f"{line}\n")
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ConfigurationError, match=named):
        Settings.load(**flags)


@pytest.mark.parametrize("share", ["off", "0", "0.01"])
def test_a_share_that_records_nothing_more_than_the_default_needs_no_folder(
    share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PREFIX + "RECORD_SHARE", share)
    assert Settings.load().record is None


WRONG = ['"abc"', '""', "1.5", "-1", "[1]", "{a = 1}", "true", "nan", "inf", "99999999999999999999", "[]", "1979-05-27"]
STRANGE = re.compile(r"Input|Extra|Tuple|Value error|valid (integer|string|number|boolean|tuple)|pydantic|class '")


def refusal(**flags: str) -> str:
    """Why the settings are refused; nothing where they are not."""
    try:
        Settings.load(**flags)
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", Settings.model_fields)
def test_whatever_stands_at_a_key_of_the_file_is_refused_in_plain_words(name: str, config: Path):
    said = []
    for value in WRONG:
        config.write_text(f"{name} = {value}\n")
        said.append(refusal())
    assert any(said)
    assert [text for text in said if text and (name not in text or STRANGE.search(text))] == []


@pytest.mark.sampled(6)
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


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", None], ids=["no TOML", "no text", "not there"])
def test_a_file_that_is_no_toml_is_refused(config: Path, content: bytes | None):
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(ConfigurationError):
        Settings.load()


# Cores


@pytest.mark.parametrize(
    ("of_cgroup", "quota"),
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
def test_the_quota_of_a_cgroup_of_either_version(of_cgroup: dict[str, str], quota: float | None, tmp_path: Path):
    for name, text in of_cgroup.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert files.cgroup_quota(tmp_path) == quota


def test_the_least_quota_of_the_cgroups_of_a_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own").write_text("0::/system.slice/lengthwise.service\n")
    monkeypatch.setattr(files, "OWN_CGROUPS", tmp_path / "own")
    service = tmp_path / "system.slice" / "lengthwise.service"
    service.mkdir(parents=True)
    (service / "cpu.max").write_text("300000 100000\n")
    assert files.cgroup_quota(tmp_path) == 3
    (service.parent / "cpu.max").write_text("150000 100000\n")
    assert files.cgroup_quota(tmp_path) == 1.5


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (8.0, 4), (2.5, 2), (0.5, 1)])
def test_cores_are_those_of_the_affinity_or_fewer_by_quota(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(files, "cgroup_quota", lambda root: quota)
    assert available_cores() == cores


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(files, "cgroup_quota", lambda root: None)
    assert available_cores() == 3


@pytest.mark.parametrize(("given", "share"), [("off", 0.0), ("0", 0.0), ("1", 1.0), ("0.01", 0.01)])
def test_the_access_log_is_off_or_a_share(given: str, share: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LENGTHWISE_ACCESS_LOG", given)
    assert Settings.load().access_log == share


def test_origins_are_a_list_in_the_file_and_stand_with_commas_in_a_variable(
    config: Path, monkeypatch: pytest.MonkeyPatch
):
    config.write_text('cors_origins = ["https://a.example"]\n')
    assert Settings.load().cors_origins == ("https://a.example",)
    monkeypatch.setenv("LENGTHWISE_CORS_ORIGINS", "https://a.example, http://localhost:3000,")
    assert Settings.load().cors_origins == ("https://a.example", "http://localhost:3000")


@pytest.mark.parametrize("name", REMOVED)
def test_an_option_that_is_gone_says_so_as_a_variable_and_in_the_file(
    name: str, config: Path, monkeypatch: pytest.MonkeyPatch
):
    config.write_text(f"{name} = 1\n")
    with pytest.raises(ConfigurationError, match=f"gone: {REMOVED[name]}"):
        Settings.load()
    config.write_text("")
    monkeypatch.setenv(f"LENGTHWISE_{name.upper()}", "1")
    with pytest.raises(ConfigurationError, match=f"gone: {REMOVED[name]}"):
        Settings.load()

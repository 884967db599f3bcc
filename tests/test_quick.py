"""`make quick`: which tests a change can reach, which of them run, and the bound on what a set of tests takes."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import processor_time, quick
from tests.support import processor_seconds

SERVICE, EXPORTER = quick.PACKAGES


def names(paths: list[Path]) -> set[str]:
    return {path.relative_to(quick.TESTS).as_posix() for path in paths}


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "reached", "not_reached"),
    [
        (SERVICE / "batching" / "buckets.py", "service/test_buckets.py", "service/test_manifest.py"),
        (SERVICE / "application" / "app.py", "service/test_predict.py", "service/test_plan.py"),  # by a fixture
        (SERVICE / "api.py", "service/test_api.py", "service/test_plan.py"),  # by `lengthwise.load`
        (EXPORTER / "mending" / "mend.py", "model_export/test_mend.py", "service/test_predict.py"),
        (quick.ROOT / "README.md", "test_documents.py", "service/test_plan.py"),
        (SERVICE / "decoding" / "_fast_json.c", "service/test_fast_json.py", "service/test_plan.py"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_change_reaches_the_tests_that_import_it(file: Path, reached: str, not_reached: str) -> None:
    run, left = quick.chosen([file])
    assert reached in names([*run, *left])
    assert not_reached not in names([*run, *left])


def test_the_nearest_tests_run_and_those_that_are_left_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = {quick.TESTS / f"test_{name}.py": imports for name, imports in {"a": 2, "b": 1, "c": 1, "d": 0}.items()}
    monkeypatch.setattr(quick, "SECONDS", tmp_path / "seconds.json")
    monkeypatch.setattr(quick, "BUDGET", 45.0)
    quick.SECONDS.write_text(json.dumps({"test_a.py": 1, "test_b.py": 20, "test_c.py": 30, "test_d.py": 25}))
    monkeypatch.setattr(quick, "distances", lambda files: tests)
    assert quick.command([SERVICE / "errors.py"])[2:] == ["tests/test_d.py", "tests/test_b.py"]
    assert "2 files of tests, the nearest to the change; 2 more are left" in capsys.readouterr().out


@pytest.mark.parametrize("files", [[], [quick.ROOT / "pyproject.toml"], [quick.TESTS / "conftest.py"]])
def test_where_no_change_is_known_the_tests_of_the_service_run(files: list[Path]) -> None:
    assert quick.command(files)[2:] == [*quick.WHOLE]


@pytest.mark.process
def test_a_file_that_is_gone_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a", *words], cwd=tmp_path, check=True)

    gone, moved, left = (tmp_path / f"test_{name}.py" for name in ("gone", "moved", "left"))
    for file in (gone, moved, left):
        file.write_text(f"# {file.stem}\n" * 9)
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "a")
    git("rm", "-q", gone.name)
    git("mv", moved.name, "test_there.py")
    left.unlink()
    (tmp_path / "test_new.py").touch()
    monkeypatch.setattr(quick, "ROOT", tmp_path)
    assert {path.name for path in quick.changed()} == {"test_there.py", "test_new.py"}
    monkeypatch.undo()
    monkeypatch.setattr(quick, "importers", dict)
    assert quick.chosen([quick.TESTS / "test_gone.py"]) == ([], [])


def test_processes_are_started_where_only_tests_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "importers", dict)
    test = quick.TESTS / "service" / "test_drain.py"
    assert "not process" not in quick.command([test])[1]
    assert "not process" in quick.command([test, SERVICE / "errors.py"])[1]


@pytest.mark.long
def test_a_change_in_a_room_takes_a_minute_of_processor_or_less(capsys: pytest.CaptureFixture[str]) -> None:
    assert statistics.median(quick.costs().values()) + quick.START <= 60
    quick.say_costs()
    said = capsys.readouterr().out.splitlines()
    assert [row.partition(" ")[0] for row in (said[0], said[-1])] == ["a", "without"]
    assert len(said) == 7


@pytest.mark.process
@pytest.mark.parametrize(("most", "command", "status"), [(1e9, "0", 0), (0.0, "0", 1), (1e9, "7", 7), (0.0, "7", 7)])
def test_a_set_fails_above_its_bound_or_with_its_command(
    most: float, command: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processor_time, "MOST", {"quick": most})
    monkeypatch.setattr(processor_time, "fixed_work", lambda: 0.5)  # it takes that long; each run of a set measures it
    monkeypatch.setattr(sys, "argv", ["", "quick", sys.executable, "-c", f"raise SystemExit({command})"])
    with pytest.raises(SystemExit) as ended:
        processor_time.main()
    assert int(ended.value.code or 0) == status
    assert "times a fixed piece of work" in capsys.readouterr().out


@pytest.mark.process
def test_the_processor_time_of_a_process_counts_and_its_waiting_does_not() -> None:
    before = processor_time.used()
    work = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(1)"
    subprocess.run([sys.executable, "-c", work], check=True)
    assert 0.5 <= processor_time.used() - before < 1.4


def test_seconds_of_a_file_leave_out_tests_that_start_a_process(tmp_path: Path) -> None:
    file, said = tmp_path / "seconds.json", list[str]()
    config = SimpleNamespace(stash=pytest.Stash(), getoption=lambda name: str(file))
    processor_seconds.pytest_configure(config)
    worker = SimpleNamespace(
        config=config, workeroutput={processor_seconds.NAME: [["tests/a/test_b.py::one", False, 1]]}
    )
    config.stash[processor_seconds.SECONDS] |= {
        ("tests/a/test_b.py::one", False): 1.04,
        ("tests/a/test_b.py::two", True): 5.0,
    }
    processor_seconds.pytest_testnodedown(worker)
    reporter = SimpleNamespace(config=config, section=said.append, write_line=said.append)
    processor_seconds.pytest_terminal_summary(reporter)
    assert json.loads(file.read_text()) == {"a/test_b.py": 2.0}
    assert said == ["processor seconds: 7 in tests", "   5.0  tests/a/test_b.py::two", "   2.0  tests/a/test_b.py::one"]

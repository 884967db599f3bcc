"""The pages are true: their blocks run and print what they say, and what they point to is there."""

import re
import runpy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest

from lengthwise.client.exchange import Deadline
from lengthwise.commands.cli import main
from tests.support import documents
from tests.support.documents import ROOT
from tests.support.long import long_but
from tests.support.server_process import ServerProcess, started

pytestmark = pytest.mark.usefixtures("quick_costs")

STARTS = ServerProcess
"""These tests start servers."""


@dataclass(frozen=True)
class Page:
    """How a page runs."""

    serve: tuple[str, ...] | None = None
    here: bool = False
    sections: tuple[str, ...] = ()
    tolerance: float = 1e-6
    apart: bool = False
    records: tuple[int, ...] = ()  # lengths of sequences that a service has recorded in `records`


PAGES = {
    "README.md": Page(serve=(), here=True),
    "docs/add-the-check.md": Page(),
    "docs/api.md": Page(serve=("--grpc-port", "8001"), here=True, apart=True),
    "docs/client.md": Page(serve=("--runners", "1")),
    "docs/coming-from.md": Page(),
    "docs/data.md": Page(),
    "docs/engines.md": Page(sections=("A scorer",)),
    "docs/keras.md": Page(here=True),
    "docs/masking.md": Page(here=True),
    "docs/mending.md": Page(here=True),
    "docs/monitoring.md": Page(records=(5, 7, 20)),
    "docs/own-code.md": Page(),
    "docs/python.md": Page(),
    "docs/spec.md": Page(),
    "docs/static.md": Page(here=True),
    "docs/streaming.md": Page(),
    "docs/streaming-export.md": Page(here=True),
    "docs/summaries.md": Page(tolerance=0.05),
    "docs/targets.md": Page(here=True),
    "docs/troubleshooting.md": Page(),
    "docs/tutorial-keras.md": Page(tolerance=0.15),
    "docs/tutorial-torch.md": Page(tolerance=0.15),
}
SLOW = {
    f"docs/{name}.md"
    for name in (
        *("add-the-check", "api", "coming-from", "keras", "masking", "mending", "monitoring", "own-code", "python"),
        *("static", "summaries", "troubleshooting", "tutorial-keras"),
    )
}
"""Pages that `make test-long` runs: each takes two seconds of processor time or more."""
LONG = [name for name in PAGES if any(block.mark == "long" for block in documents.blocks(ROOT / name))]
ELSEWHERE = ("docs/deployment.md", "docs/measuring.md")
"""Pages whose commands have tests of their own: tests/deploy, tests/clients."""
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md", "*/README.md") for path in ROOT.glob(pattern)
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
THEIRS = {
    "docs/add-the-check.md": {"padding-tests"},
    "docs/deployment.md": {"build-arg", "cpus", "repository-url"},
    "docs/engines.md": {"env-manager"},
    "docs/observability.md": {"enable-feature"},
    "docs/measuring.md": {"shape", "shared-memory", "streaming"},
    "docs/coming-from.md": {
        *("models", "start", "model-store", "model_config_file", "batching_parameters_file", "model-control-mode"),
    },
}
"""Options of other programs, which a page names outside of its blocks."""


@pytest.fixture(autouse=True)
def _quiet_and_patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    after = Deadline.after
    # A busy machine takes long.
    monkeypatch.setattr(Deadline, "after", lambda seconds, retries: after(max(seconds, 180), retries))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Keras', about masks that layers drop
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras', in a training
        yield


def walk(name: str, folder: Path, *, long: bool) -> int:
    """Runs a page: the number of its blocks that ran."""
    page = PAGES[name]
    with documents.page_run(name, ROOT if page.here else folder, folder, apart=page.apart) as run:
        if page.records:
            with started("--record", str(folder / "records"), "--record-share", "1") as server:
                server.predict({"sequences": [[[0.5] * 12] * length for length in page.records]}).raise_for_status()
                server.terminate()  # the file of records is complete when the service has ended
                assert server.end() == 0, server.text
        if page.serve is not None:
            run.serve(page.serve)
        return documents.walk(ROOT / name, run, long=long, sections=page.sections, tolerance=page.tolerance)


@pytest.mark.sampled(14)
@pytest.mark.process
@pytest.mark.parametrize("name", long_but(PAGES, lambda name: name not in SLOW))
def test_the_blocks_of_a_page_run_and_print_what_it_says(name: str, tmp_path: Path) -> None:
    ran = walk(name, tmp_path, long=False)
    assert ran or name in LONG


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_the_long_blocks_of_a_page_run_too(name: str, tmp_path: Path) -> None:
    assert walk(name, tmp_path, long=True)


def test_every_page_with_commands_is_run() -> None:
    with_commands = {name for name in DOCUMENTS if re.search(r"^```(sh|python)\b", TEXTS[name], re.M)}
    assert with_commands == {*PAGES, *ELSEWHERE} - {"docs/spec.md"}


@cache
def anchors(page: Path) -> set[str]:
    """The places of a page that a link may name."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_page_points_to_is_there(name: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"```.*?```", "", TEXTS[name], flags=re.S))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            page = (ROOT / name).parent / file if file else ROOT / name
            assert page.exists(), target
            assert not anchor or anchor in anchors(page), target


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    text = (ROOT / "docs" / "site" / "index.md").read_text()
    trees = re.findall(r"```\{toctree\}\n(?:.*\n)*?\n((?:.*\n)*?)```", text)
    named = {line for tree in trees for line in tree.splitlines()}
    assert {f"docs/{page.stem}" for page in (ROOT / "docs").glob("*.md")} <= named


def test_every_page_that_a_page_of_the_site_links_is_one_of_the_site() -> None:
    patterns = runpy.run_path(str(ROOT / "docs" / "site" / "conf.py"))["include_patterns"]
    pages = {page for pattern in patterns for page in ROOT.glob(pattern)}
    for page in sorted(one for one in pages if one.suffix == ".md"):
        linked = re.findall(r"\]\((?!\w+://)([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
        assert {(page.parent / name).resolve() for name in linked} <= pages, page.name


@cache
def options() -> set[str]:
    """The options of all commands."""
    context = click.Context(main)
    commands = [main, *filter(None, (main.get_command(context, name) for name in main.list_commands(context)))]
    return {option for one in commands for each in one.params for option in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize("name", sorted(name for name in DOCUMENTS if name.startswith(("README", "docs/"))))
def test_every_option_that_a_page_names_exists(name: str) -> None:
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.S)
    text = re.sub(r"`(docker|make|pip|kubectl|perf_analyzer|python|curl|lengthwise) [^`]*`", "", text)
    named = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)) - THEIRS.get(name, set())
    assert {f"--{option}" for option in named} <= options() | {"--help"}


def test_every_target_of_make_that_a_page_names_exists() -> None:
    makefiles = (ROOT / "Makefile").read_text() + (ROOT / "deploy" / "deploy.mk").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefiles, re.M))
    named = {one for text in TEXTS.values() for one in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.M)}
    assert named <= targets


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_module_that_a_page_names_is_there(name: str) -> None:
    files = [
        f"/{path.relative_to(ROOT)}"
        for part in ("service", "model_export", "tests")
        for path in ROOT.glob(f"{part}/**/*.*")
    ]
    named = set(re.findall(r"`([\w./]+\.(?:py|c|h|proto))`", TEXTS[name]))
    assert [one for one in sorted(named) if not any(path.endswith(f"/{one}") for path in files)] == []


def test_no_call_wants_a_newer_curl_than_people_have() -> None:
    # curl --json came with 7.82, of 2022
    sources = [path.read_text() for path in ROOT.glob("service/**/*.py")]
    assert not [text for text in (*TEXTS.values(), *sources) if re.search(r"\bcurl\b.* --json\b", text)]

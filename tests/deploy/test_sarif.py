"""`check --sarif` by the schema of SARIF 2.1.0 itself, and by the rules of its reader and of GitHub's code scanning."""

import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from lengthwise.commands.cli import main
from tests.deploy.tools import NODE, NPM

READER = NODE / "@microsoft" / "sarif-multitool-linux"

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not READER.is_dir(), reason=f"the npm packages are not installed ({NPM})"),
]


@pytest.fixture(params=["masking.py:attention_after_lstm", "masking.py:lengths_given", "mending.py:inception"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "leaks.sarif"
    words = ["check", f"examples/{request.param}", "--max-length", "40", "--sarif", str(file)]
    CliRunner().invoke(main, words)
    return file


def test_a_log_is_one_by_the_schema(log: Path) -> None:
    schema = json.loads((READER / "sarif-2.1.0.json").read_text())
    jsonschema.validate(json.loads(log.read_text()), schema, format_checker=jsonschema.FormatChecker())


def test_a_log_breaks_no_rule_of_its_reader_and_of_github(log: Path) -> None:
    program = READER / "Sarif.Multitool"
    program.chmod(0o755)
    done = subprocess.run(
        [program, "validate", log, "--rule-kind", "Sarif;Gh"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1"},
    )
    assert "Analysis completed successfully." in done.stdout, done.stdout + done.stderr
    assert ": error " not in done.stdout

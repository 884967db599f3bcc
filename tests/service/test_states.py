"""The text of a state: what it holds, and that nothing else is read as one."""

import hashlib
import hmac
import importlib.util
import json
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.commands.cli import main
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.kernels import _kernels
from lengthwise.runtime.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest
from lengthwise.runtime.states import SequenceState, StateKeys, unpack
from tests.support.streaming_models import graph_bytes, gru, manifest

DIGEST = bytes(range(16))
VALUES = struct.pack("<ffq", 1.5, -2.0, 7)
FIRST, SECOND = "ab" * 32, "cd" * 40
PLAIN = StateKeys()


def raw(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def text_of(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def keys(folder: Path, *lines: str) -> StateKeys:
    path = folder / "keys"
    path.write_text("\n".join(lines))
    return StateKeys(path)


def test_a_text_has_format_digest_offset_values_and_tag() -> None:
    content = raw(PLAIN.text(DIGEST, 1001, VALUES))
    before = b"\x01" + DIGEST + (1001).to_bytes(8, "little") + VALUES
    assert content == before + hashlib.sha256(before).digest()[:16]


def test_a_text_is_read_as_it_was_written() -> None:
    assert PLAIN.read(PLAIN.text(DIGEST, 1001, VALUES)) == SequenceState(DIGEST, 1001, VALUES, plain=True)


def test_with_keys_the_first_signs_and_all_are_read(tmp_path: Path) -> None:
    text = keys(tmp_path, FIRST).text(DIGEST, 3, VALUES)
    content = raw(text)
    assert content[-16:] == hmac.digest(bytes.fromhex(FIRST), content[:-16], "sha256")[:16]
    rotated = keys(tmp_path, SECOND, FIRST)
    assert rotated.read(text) is not None
    assert rotated.text(DIGEST, 3, VALUES) != text
    assert keys(tmp_path, SECOND).read(text) is None


def test_with_keys_nothing_unsigned_is_read(tmp_path: Path) -> None:
    assert keys(tmp_path, FIRST).read(PLAIN.text(DIGEST, 3, VALUES)) is None


def test_without_keys_nothing_signed_is_read(tmp_path: Path) -> None:
    assert PLAIN.read(keys(tmp_path, FIRST).text(DIGEST, 3, VALUES)) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no key"),
        ("\n\n", "has no key"),
        (f"{FIRST}\nab", ":2: a key is at least 32 bytes"),
        ("zz" * 32, ":1: a key is at least 32 bytes"),
        ("ab" * 32 + "a", ":1: a key is at least 32 bytes"),
    ],
)
def test_a_wrong_key_file_is_refused_at_the_start(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        keys(tmp_path, content)


def test_a_missing_key_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        StateKeys(tmp_path / "none")


def test_a_key_file_is_read_again_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read = keys(tmp_path, FIRST)
    text = read.text(DIGEST, 3, VALUES)
    (tmp_path / "keys").write_text("no key")
    read.refresh()
    assert read.read(text) is not None
    assert "the old ones stay" in caplog.text
    (tmp_path / "keys").write_text(SECOND)
    read.refresh()
    assert read.read(text) is None


@given(st.data())
def test_no_change_of_a_text_is_read(data: st.DataObject) -> None:
    content = raw(PLAIN.text(DIGEST, 1001, VALUES))
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    longer = content + data.draw(st.binary(min_size=1, max_size=40))
    for wrong in (bytes(changed), cut, longer):
        assert PLAIN.read(text_of(wrong)) is None


@given(st.text(max_size=200))
def test_no_text_at_random_is_read(text: str) -> None:
    assert PLAIN.read(text) is None


def test_a_text_has_one_form_only() -> None:
    text = PLAIN.text(DIGEST, 3, VALUES[:8])  # 49 bytes: the last letter has four bits to spare
    other_bits = text[:-1] + chr(ord(text[-1]) + 1)
    assert raw(other_bits) == raw(text)
    for wrong in (other_bits, f"{text}==", f" {text}", f"{text}\n", text.replace("-", "+").replace("_", "/") + "!"):
        assert PLAIN.read(wrong) is None


LETTERS = st.sampled_from('ABab01-_+/= \n"\\\u00e9\ud800')


@pytest.mark.skipif(_kernels is None, reason="this installation has no kernels")
class TestInC:
    """What the kernels do with a text and its numbers."""

    @given(st.binary(max_size=300))
    def test_bytes_become_the_text_that_python_makes(self, content: bytes) -> None:
        text = _kernels.to_base64url(content)
        assert text == text_of(content)
        assert _kernels.from_base64url(text) == _kernels.from_base64url(text.encode()) == content

    @given(st.text(LETTERS, max_size=9))
    def test_a_text_of_another_form_is_none(self, text: str) -> None:
        read = _kernels.from_base64url(text)
        assert read is None or text_of(read) == text

    @given(st.lists(st.tuples(st.sampled_from("fdiq"), st.integers(0, 5)), max_size=4), st.binary(max_size=160))
    def test_a_number_is_finite_where_numpy_says_so(self, kinds: list[tuple[str, int]], content: bytes) -> None:
        form = "".join(f"{count}{kind}" for kind, count in kinds)
        size = struct.calcsize(f"<{form}")
        content = content.ljust(size, b"\xff")[:size]
        expected = bool(np.isfinite(struct.unpack(f"<{form}", content)).all())
        assert _kernels.are_finite(form, content) is expected

    def test_fewer_numbers_than_the_form_says_are_refused(self) -> None:
        with pytest.raises(ValueError, match="not those of the format"):
            _kernels.are_finite("2d", bytes(15))


def test_without_kernels_the_same_texts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = PLAIN.text(DIGEST, 1001, VALUES)
    monkeypatch.setattr("lengthwise.runtime.kernels._kernels", None)
    spec = importlib.util.find_spec("lengthwise.runtime.states")
    assert spec is not None
    assert spec.loader is not None
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    assert other.StateKeys().text(DIGEST, 1001, VALUES) == text
    for each in (text, text.encode()):
        assert other.StateKeys().read(each) == PLAIN.read(each)
    for wrong in (f"{text}=", f" {text}", text[:-1], "+", b"\xff\xfe"):
        assert other.StateKeys().read(wrong) is None
        assert PLAIN.read(wrong) is None
    streaming = manifest(gru, graph_bytes(gru)).streaming
    assert other.unpack(np.full(8, np.nan, "<f4").tobytes(), streaming) is None
    assert other.unpack(np.zeros(8, "<f4").tobytes(), streaming)["hidden"].tolist() == [0] * 8


def test_another_format_is_not_read() -> None:
    content = b"\x02" + raw(PLAIN.text(DIGEST, 3, VALUES))[1:-16]
    assert PLAIN.read(text_of(content + hashlib.sha256(content).digest()[:16])) is None


def test_values_of_another_size_are_none_of_the_model() -> None:
    streaming = manifest(gru, graph_bytes(gru)).streaming
    assert streaming is not None
    assert unpack(bytes(31), streaming) is None
    assert unpack(bytes(33), streaming) is None
    assert unpack(np.full(8, np.nan, "<f4").tobytes(), streaming) is None
    found = unpack(np.arange(8, dtype="<f4").tobytes(), streaming)
    assert found is not None
    assert found["hidden"].tolist() == [*range(8)]


def test_the_digest_is_that_of_the_graph_and_of_the_names() -> None:
    plain = manifest(gru, graph_bytes(gru))
    assert plain.state_digest.hex() == plain.digests[GRAPH_FILE].removeprefix("sha256:")[:32]
    named = manifest(gru, graph_bytes(gru), input={"features": 4, "names": ["a", "b", "c", "d"]})
    other = manifest(gru, graph_bytes(gru), input={"features": 4, "names": ["b", "a", "c", "d"]})
    weights = plain.digests | {"weights.bin": "sha256:" + "0" * 64}
    beside = manifest(gru, graph_bytes(gru), digests=weights)
    same = manifest(gru, graph_bytes(gru), digests=plain.digests | {"stream.py": "sha256:" + "0" * 64}, version=2)
    assert len({each.state_digest for each in (plain, named, other, beside)}) == 4
    assert same.state_digest == plain.state_digest


class TestCommand:
    """`lengthwise state`."""

    @staticmethod
    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["state", *arguments])
        return done.exit_code, done.output

    @staticmethod
    def models(folder: Path) -> Manifest:
        made = manifest(gru, graph_bytes(gru))
        for version in (1, 2):
            directory = folder / "streams" / str(version)
            directory.mkdir(parents=True)
            (directory / MANIFEST_FILE).write_text(made.model_copy(update={"version": version}).to_json())
        (folder / "broken" / "1").mkdir(parents=True)
        return made

    def test_it_says_whose_a_state_is_and_what_it_has_seen(self, tmp_path: Path) -> None:
        text = PLAIN.text(self.models(tmp_path).state_digest, 1001, VALUES)
        code, output = self.run(text, "--models", str(tmp_path))
        assert code == 0
        assert "offset: 1001\nstate_bytes: 16\nsigned: no\nversions: streams/1, streams/2\n" in output
        assert "1.5" not in output

    def test_as_json_it_says_the_same(self, tmp_path: Path) -> None:
        code, output = self.run(PLAIN.text(DIGEST, 1001, VALUES), "--json", "--models", str(tmp_path))
        assert code == 0
        assert json.loads(output) == {
            "format": 1,
            "digest": DIGEST.hex(),
            "offset": 1001,
            "state_bytes": 16,
            "signed": False,
            "versions": [],
        }

    def test_a_signed_state_is_checked_by_its_keys(self, tmp_path: Path) -> None:
        text = keys(tmp_path, FIRST).text(DIGEST, 1, VALUES)
        assert "signed: yes, or it was changed" in self.run(text)[1]
        code, output = self.run(text, "--state-key-file", str(tmp_path / "keys"))
        assert (code, "signed: yes\n" in output) == (0, True)
        (tmp_path / "keys").write_text(SECOND)
        assert self.run(text, "--state-key-file", str(tmp_path / "keys"))[0] == 1

    def test_what_is_no_state_ends_with_1(self) -> None:
        code, output = self.run("no-state")
        assert code == 1
        assert "it is no state of this format" in output

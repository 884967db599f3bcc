"""Parses addresses of models, `SCHEME://...`, which may stand in the place of a folder of models. Opens none.

| address | names |
|---|---|
| `hf://OWNER/NAME[@REVISION][/PATH]` | a repository of the Hugging Face hub |
| `s3://BUCKET[/PATH]`, `gs://BUCKET[/PATH]`, `az://CONTAINER[/PATH]` | the objects below a path, or a tar archive |
| `https://HOST/PATH` | a tar archive |
| `oci://HOST/REPOSITORY[:TAG][@sha256:DIGEST]` | an image of a container registry, with a folder `/models` |

An address of objects or of an archive may end in `#sha256=DIGEST`: then the fetched content must have this digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from lengthwise.errors import ConfigurationError
from lengthwise.wrong_values import nearest

ARCHIVE_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
_DIGEST: Final = r"(?:#sha256=(?P<digest>[0-9a-f]{64}))?"
_OBJECTS: Final = rf"(?P<host>[\w.-]+)(?:/(?P<path>[^?#]*))?{_DIGEST}"
_FORMS: Final = {
    "hf": (
        "OWNER/NAME[@REVISION][/PATH]",
        "put a token into HF_TOKEN, or run `hf auth login`",
        r"(?P<host>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/?#]+))?(?:/(?P<path>[^?#]*))?",
    ),
    "s3": (
        "BUCKET[/PATH][#sha256=DIGEST]",
        "put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        _OBJECTS,
    ),
    "gs": ("BUCKET[/PATH][#sha256=DIGEST]", "name their file in GOOGLE_APPLICATION_CREDENTIALS", _OBJECTS),
    "az": (
        "CONTAINER[/PATH][#sha256=DIGEST]",
        "put them into AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        _OBJECTS,
    ),
    "https": (
        "HOST/PATH[#sha256=DIGEST]",
        "use a signed URL, in the variable LENGTHWISE_MODELS",
        rf"(?P<host>[\w.:\[\]-]+)/(?P<path>[^?#]+)(?:\?(?P<query>[^#]*))?{_DIGEST}",
    ),
    "oci": (
        "HOST/REPOSITORY[:TAG][@sha256:DIGEST]",
        "run `docker login HOST`",
        r"(?P<host>[\w.-]+(?::\d+)?)/(?P<path>[a-z0-9][a-z0-9._/-]*)"
        r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<revision>sha256:[0-9a-f]{64}))?",
    ),
}  # by scheme: the form of what follows `://`, where credentials belong, and the pattern of the form
# How an address begins, also a wrong one (`ftp://...`, `s3:/...`)
_BEGINNING: Final = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://|(?:{'|'.join(_FORMS)}|http):/")
_LOCAL_HOST: Final = re.compile(r"(?:localhost|127(?:\.\d+){3}|\[::1\])(?::\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of an address; '' for a part that is absent. `str` leaves the query out, which may hold a signature."""

    scheme: str
    host: str  # for `hf`: OWNER/NAME; for objects: the bucket or container
    path: str = ""
    tag: str = ""  # of an image
    revision: str = ""  # for `hf`: a branch, tag or commit; for `oci`: `sha256:DIGEST`
    query: str = ""
    digest: str = ""  # SHA-256 that the fetched content must have, in hexadecimal digits

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        tag = f":{self.tag}" if self.tag else ""
        revision = f"@{self.revision}" if self.revision else ""
        rest = revision + path if self.scheme == "hf" else path + tag + revision
        return f"{self.scheme}://{self.host}{rest}"

    @property
    def url(self) -> str:
        """The URL of an archive, with its query; it must not be logged."""
        return f"{self.scheme}://{self.host}/{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def is_fixed(self) -> bool:
        """Whether the address has a digest or a commit, so that the models there can never change."""
        return bool(self.digest or re.fullmatch(r"sha256:.+|[0-9a-f]{40}", self.revision))

    @property
    def is_local(self) -> bool:
        """Whether the host is this machine, which may be called without TLS (`http://`)."""
        return _LOCAL_HOST.fullmatch(self.host) is not None


def is_address(text: object) -> bool:
    """Whether a value is a text that begins like an address, be it right or wrong, so that it is not a path."""
    return isinstance(text, str) and _BEGINNING.match(text) is not None


def names_models(text: str) -> bool:
    """Whether a text is an address of models, where it could also be the URL of a service (`http`, `https`)."""
    return is_address(text) and (not text.startswith("http") or re.split("[?#]", text)[0].endswith(ARCHIVE_SUFFIXES))


def parse(text: str) -> Address:
    """Parses an address of models. `http://` is allowed for this machine only.

    Raises:
        ConfigurationError: It has another form, or credentials in it; the message does not repeat them.
    """
    scheme, colon, rest = text.partition(":")
    form, advice, pattern = _FORMS.get("https" if scheme == "http" else scheme, ("", "", ""))
    if not form:
        kinds = ", ".join(f"{known_scheme}://" for known_scheme in _FORMS)
        problem = f"{scheme}:// is no kind of address{nearest(scheme, _FORMS)}" if colon else f"{text!r} is no address"
        raise ConfigurationError(f"{problem}; addresses of models begin with {kinds}")
    if "@" in rest.removeprefix("//").partition("/")[0]:
        raise ConfigurationError(
            f"{_without_secrets(text)}: credentials never stand in an address, where others see them; {advice}"
        )
    # The parts, of which a path must not leave its folder
    match = re.fullmatch(f"//{pattern}", rest, re.ASCII) if text.isprintable() else None
    parts = {} if match is None else {name: part or "" for name, part in match.groupdict().items()}
    parts["path"] = parts.get("path", "").rstrip("/")
    if match is None or {"", ".", ".."}.intersection(parts["path"].split("/") if parts["path"] else ()):
        raise ConfigurationError(f"{_without_secrets(text)!r} has not the form {scheme}://{form}")
    address = Address(scheme, **parts)
    if scheme == "http" and not address.is_local:
        raise ConfigurationError(f"{address}: models are fetched by https://, by http:// from this machine only")
    return address


def _without_secrets(text: str) -> str:
    """An address, which may be wrong, without credentials before its host, and without query and digest."""
    return re.sub(r"(?<=//)[^/]*@", "", re.sub(r"[?#].*", "", text, flags=re.DOTALL))

"""Repositories of the Hugging Face hub, by huggingface_hub, which knows the credentials and the address of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # its documents name both
    build_hf_headers,
    hf_raise_for_status,
)

from lengthwise.addresses import Address
from lengthwise.errors import ConfigurationError, LengthwiseError, StoreUnreachable
from lengthwise.stores import archives, refuse, write_answer

_SECONDS = 30.0  # timeout of a request, until its answer begins and between parts of the answer


class HubSource:
    """A revision of a repository on the hub, or a folder of it: a `StoreContent`."""

    def __init__(self, address: Address) -> None:
        """Asks the hub for the commit of the revision, and for the names and sizes of its files.

        Raises:
            ConfigurationError: The hub refuses, or there are no files, or too many.
            StoreUnreachable: The hub gives no answer.
        """  # noqa: DOC502 - what it calls raises one of them
        self._address = address
        limits = archives.FetchLimits(str(address))
        prefix = f"{address.path}/" if address.path else ""
        with _plain_errors(str(address)):
            revision = unquote(address.revision) or None  # as in refs%2Fpr%2F1
            about = HfApi().model_info(address.host, revision=revision, files_metadata=True, timeout=_SECONDS)
            self._sizes = {
                file.rfilename: file.size or 0
                for file in about.siblings or ()
                if file.rfilename.startswith(prefix) and limits.allow(file.size or 0)
            }
        if not self._sizes:
            raise ConfigurationError(f"there is nothing at {address}")
        self.state = about.sha

    def download(self, folder: Path) -> None:
        """Downloads the files into a folder, within limits of time and size, and without the library's own cache."""
        where = str(self._address)
        allow = partial(archives.FetchLimits(where).allow, files=0)
        for name, size in self._sizes.items():
            target = archives.file_in(folder, name.removeprefix(self._address.path).lstrip("/"), where)
            url = hf_hub_url(self._address.host, name, revision=self.state)
            with _plain_errors(where), target.open("wb") as file, _answer(url) as parts:
                write_answer(parts, file, where, size, allow)  # a longer file is cut off: its digest will be wrong


open_source = HubSource


@contextmanager
def _answer(url: str) -> Iterator[Iterator[bytes]]:
    """Opens a URL of the hub for the block, and yields the parts of its bytes.

    A redirect to a store of files is followed, without the user's token.

    Raises:
        ConfigurationError: A redirect leads from https to http.
    """
    session = get_session()
    headers = {**build_hf_headers(), "accept-encoding": "identity"}  # a compressed answer may have any size
    with session.stream("GET", url, headers=headers, follow_redirects=True, timeout=_SECONDS) as answer:
        if url.startswith("https:") and any(hop.url.scheme != "https" for hop in (*answer.history, answer)):
            raise ConfigurationError(f"the hub leads from https to http for {url}")
        hf_raise_for_status(answer)
        yield answer.iter_raw()


def upload(folder: Path, address: Address) -> str:
    """Commits a folder to a repository on the hub, which is created if it is missing; returns the commit's address.

    Raises:
        ConfigurationError: The hub refuses the upload.
    """  # noqa: DOC502 - what it calls raises it
    api = HfApi()
    with _plain_errors(str(address)):
        if not api.repo_exists(address.host):
            api.create_repo(address.host)
        commit = api.upload_folder(
            repo_id=address.host,
            folder_path=folder,
            path_in_repo=address.path or None,
            revision=unquote(address.revision) or None,
            commit_message="Models of Lengthwise",
        )
    path = f"/{address.path}" if address.path else ""
    return f"hf://{address.host}@{commit.oid}{path}"


@contextmanager
def _plain_errors(where: str) -> Iterator[None]:
    """Converts the errors that huggingface_hub raises in the block to errors of this package.

    Their texts have no URLs, which may hold a signature. The error of a file that cannot be written stays an OSError.

    Raises:
        ConfigurationError: The hub refuses.
        StoreUnreachable: It gives no answer, or only a part of one.
    """
    try:
        yield
    except HfHubHTTPError as error:
        refuse(
            where,
            "the hub",
            error.response.status_code,
            error.response.reason_phrase,
            login="a private repository needs HF_TOKEN, or `hf auth login`",
        )
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    except Exception as error:  # of the library's HTTP client, which is another one in another release
        if isinstance(error, LengthwiseError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise StoreUnreachable(f"{where}: no answer of the hub ({type(error).__name__})") from None

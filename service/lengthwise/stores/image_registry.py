"""A container registry over HTTP, by the distribution specification of OCI, with the credentials of `docker login`.

A registry stores blobs by digest, and manifests, which list the blobs of an image, by digest or tag; an index lists
manifests of one image for several processors. A *descriptor* is a dictionary with the digest and size of a blob.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import httpx2
import orjson

from lengthwise import files
from lengthwise.addresses import Address
from lengthwise.errors import ConfigurationError, StoreUnreachable, VerificationError
from lengthwise.settings import docker_folder
from lengthwise.stores import refuse, write_answer

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
_DOCKER_TYPES: Final = tuple(f"application/vnd.docker.distribution.manifest{kind}.v2+json" for kind in ("", ".list"))
_MOST_BYTES: Final = 2**22  # of a manifest, and of Docker's configuration
_MOST_SHORT_BYTES: Final = 2**16  # of an answer that is neither a manifest nor a blob
_PLAIN: Final = {"accept-encoding": "identity"}  # a compressed answer may have any size
_HELPER_SECONDS: Final = 30
_HUB: Final = {"docker.io": ("registry-1.docker.io", "https://index.docker.io/v1/")}
"""By the host in an address, where they differ: the host of the registry's API, and its name in the configuration."""


class ImageRegistry:
    """A client of one repository of images in a registry; `close` ends its connections.

    `actions`: what the login asks for, "pull" or "pull,push".
    """

    def __init__(self, address: Address, actions: str = "pull") -> None:
        """Reads the credentials for the registry; sends nothing yet.

        Raises:
            ConfigurationError: The credentials cannot be read.
        """  # noqa: DOC502 - what it calls raises it
        host, name = _HUB.get(address.host, (address.host, address.host))
        self._where = str(address)
        self._is_plain = address.is_local
        scheme = "http" if self._is_plain else "https"
        self._client = httpx2.Client(
            base_url=f"{scheme}://{host}/v2/{address.path}/",
            auth=_Login(
                httpx2.URL(f"{scheme}://{host}").netloc.decode(),
                credentials(name),
                f"repository:{address.path}:{actions}",
            ),
            follow_redirects=True,
            headers=_PLAIN,
            event_hooks={
                "request": [self._check_scheme],
                "response": [lambda answer: answer.is_success or _shorten(answer)],
            },
            timeout=httpx2.Timeout(30, connect=10),
        )
        self.close = self._client.close

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """Reads a manifest or an index by a tag or a digest; returns its content and its digest.

        Raises:
            ConfigurationError: The manifest is too large.
            VerificationError: The reference is a digest, and the content has another one.
        """
        accepted = ", ".join((INDEX_TYPE, MANIFEST_TYPE, *_DOCKER_TYPES))
        content = io.BytesIO()
        with self._answer("GET", f"manifests/{reference}", headers={"accept": accepted}) as answer:
            write_answer(answer.iter_raw(), content, self._where, _MOST_BYTES)
        if content.tell() > _MOST_BYTES:
            raise ConfigurationError(f"{self._where}: its manifest has more than {_MOST_BYTES} bytes")
        digest = files.digest_of(content.getvalue())
        if reference.startswith("sha256:") and digest != reference:
            raise VerificationError(f"{self._where}: the registry gives {digest} for the manifest {reference}")
        return content.getvalue(), digest

    def blob(self, descriptor: dict[str, Any], path: Path, allow: Callable[[int], object]) -> None:
        """Downloads a blob to a file; `allow` is that of `write_answer`.

        Raises:
            VerificationError: What the registry sent has not the digest of the descriptor.
        """
        with path.open("wb") as file, self._answer("GET", f"blobs/{descriptor['digest']}") as answer:
            write_answer(answer.iter_raw(), file, self._where, descriptor["size"], allow)
        if files.digest(path) != descriptor["digest"]:
            raise VerificationError(
                f"{self._where}: the registry gives other bytes for the blob {descriptor['digest']}"
            )

    def put_blob(self, digest: str, path: Path) -> None:
        """Uploads a file as a blob, unless the registry has it."""
        with self._answer("HEAD", f"blobs/{digest}", missing=True) as answer:
            if answer.status_code == 200:
                return
        with self._answer("POST", "blobs/uploads/") as answer:
            location = answer.url.join(answer.headers["location"]).copy_merge_params({"digest": digest})
        with path.open("rb") as file:
            headers = {"content-type": "application/octet-stream", "content-length": str(path.stat().st_size)}
            with self._answer("PUT", location, content=file, headers=headers):
                pass

    def put_manifest(self, reference: str, content: bytes, media_type: str) -> None:
        """Uploads a manifest or an index under a tag or its digest."""
        with self._answer("PUT", f"manifests/{reference}", content=content, headers={"content-type": media_type}):
            pass

    @contextmanager
    def _answer(
        self, method: str, url: str | httpx2.URL, *, missing: bool = False, **request: Any
    ) -> Iterator[httpx2.Response]:
        """Sends a request, and yields the successful answer for the block, whose body is not read yet.

        `missing`: Whether status 404 is successful, too.

        Raises:
            ConfigurationError: The registry refuses.
            StoreUnreachable: It gives no answer, or a part of one.
        """  # noqa: DOC502 - `refuse` raises one of them
        try:
            with self._client.stream(method, url, **request) as answer:
                status = answer.status_code
                if status >= 400 and not (missing and status == 404):
                    refuse(
                        self._where,
                        "the registry",
                        status,
                        answer.reason_phrase,
                        login="credentials are those of `docker login`",
                    )
                yield answer
        except (httpx2.HTTPError, httpx2.InvalidURL, LookupError, ValueError, AttributeError) as error:
            # The last three are raised for an answer that lacks something, such as a token
            raise StoreUnreachable(f"{self._where}: no answer of the registry ({type(error).__name__})") from None

    def _check_scheme(self, request: httpx2.Request) -> None:
        """Refuses a request that a redirect or a token service leads to http; httpx2 calls it for each request.

        Raises:
            ConfigurationError: The request would go out without TLS.
        """
        if request.url.scheme != "https" and not self._is_plain:
            raise ConfigurationError(f"{self._where}: the registry leads from https to {request.url.scheme}")


class _Login(httpx2.Auth):
    """Logs in as a registry asks for it: by a token of its token service, or by name and password."""

    def __init__(self, host: str, login: str | None, scope: str) -> None:
        """Keeps what a login needs.

        Args:
            host: The registry; other hosts get no credentials.
            login: Name and password in base64; None for an anonymous token.
            scope: The repository, and what the token allows.
        """
        self._host = host
        self._login = {} if login is None else {"authorization": f"Basic {login}"}
        self._scope = scope
        self._header: dict[str, str] = {}

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Sends a request; if the answer is 401, logs in and sends it again.

        httpx2 drives this generator: it sends each request that is yielded, and returns its answer. The login is kept
        for later requests. Another host, such as one for uploads, gets no credentials.
        """
        is_of_registry = request.url.netloc.decode() == self._host
        request.headers.update(self._header if is_of_registry else {})
        answer = yield request
        scheme, _, parameters = answer.headers.get("www-authenticate", "").partition(" ")
        if answer.status_code != 401 or not is_of_registry:
            return
        self._header = self._login
        if scheme.lower() == "bearer":
            challenge = dict(re.findall(r'(\w+)="([^"]*)"', parameters))
            query = {"service": challenge.get("service", ""), "scope": self._scope}
            url = httpx2.URL(challenge.get("realm", "")).copy_merge_params(query)
            token = yield httpx2.Request("GET", url, headers={**_PLAIN, **self._login})
            _shorten(token).read()
            if token.status_code != 200:
                return
            content = orjson.loads(token.content)
            self._header = {"authorization": f"Bearer {content.get('token') or content.get('access_token')}"}
        request.headers.update(self._header)
        yield request


def _shorten(answer: httpx2.Response) -> httpx2.Response:
    """Cuts an answer off after `_MOST_SHORT_BYTES`: httpx2 reads those of failures and of token services whole."""
    content = io.BytesIO()
    write_answer(cast("httpx2.SyncByteStream", answer.stream), content, str(answer.url.host), _MOST_SHORT_BYTES)
    answer.headers.pop("content-encoding", None)  # nobody asked for one, and inflated it may have any size
    cast("httpx2.SyncByteStream", answer.stream).close()
    answer.stream = httpx2.ByteStream(content.getvalue()[:_MOST_SHORT_BYTES])
    return answer


def credentials(name: str) -> str | None:
    """Reads the credentials for a registry from Docker's configuration: `name:password` in base64, None without any.

    A credential helper, a program that the configuration names, is asked first.

    Raises:
        ConfigurationError: The configuration, or the answer of the helper, cannot be read.
    """
    try:
        content = files.read_if_any(docker_folder() / "config.json", _MOST_BYTES)
        configuration: dict[str, Any] = json.loads(content or b"{}")
        if helper := configuration.get("credHelpers", {}).get(name) or configuration.get("credsStore"):
            process = subprocess.run(
                [f"docker-credential-{helper}", "get"],
                input=name.encode(),
                capture_output=True,
                timeout=_HELPER_SECONDS,
                check=False,
            )
            if process.returncode == 0:
                pair = json.loads(process.stdout)
                return base64.b64encode(f"{pair['Username']}:{pair['Secret']}".encode()).decode()
        login: str | None = configuration.get("auths", {}).get(name, {}).get("auth")
    except (OSError, ValueError, AttributeError, KeyError, subprocess.SubprocessError) as error:
        why = type(error).__name__  # its text may hold what is secret
        raise ConfigurationError(f"the credentials for {name} in {docker_folder()} cannot be read ({why})") from None
    return login

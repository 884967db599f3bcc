"""HTTPS, with and without certificates of the client, over real sockets."""

import ssl
from pathlib import Path

import httpx2
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from lengthwise.connections.listener import context
from lengthwise.errors import ConfigurationError
from lengthwise.processes.server import serve
from lengthwise.settings import Settings, flag
from tests.support.server_process import started


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return path


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.process
def test_a_client_that_trusts_the_authority_is_answered(authority: trustme.CA, certificate: Path) -> None:
    with started("--tls-cert-file", str(certificate), verify=trusting(authority)) as server:
        assert httpx2.get(f"{server.url}/livez", verify=trusting(authority)).text == "ok"
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/livez")


@pytest.mark.long
@pytest.mark.process
def test_a_client_must_show_a_certificate_where_an_authority_is_named(
    authority: trustme.CA, certificate: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "authorities.pem"
    authority.cert_pem.write_to_path(bundle)
    known, stranger = trusting(authority), trusting(authority)
    authority.issue_cert("client").configure_cert(known)
    trustme.CA().issue_cert("client").configure_cert(stranger)
    options = ("--tls-cert-file", str(certificate), "--tls-client-ca-file", str(bundle))
    with started(*options, verify=known) as server:
        assert server.get("/livez").text == "ok"
        for unknown in (trusting(authority), stranger):
            with pytest.raises(httpx2.TransportError):
                httpx2.get(f"{server.url}/livez", verify=unknown)


@pytest.mark.parametrize("text", [None, "", "no certificate"])
@pytest.mark.parametrize("option", ["tls_cert_file", "tls_key_file", "tls_client_ca_file"])
def test_a_file_that_cannot_be_used_is_named_with_its_option(
    option: str, text: str | None, certificate: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pem"
    if text is not None:
        broken.write_text(text)
    with pytest.raises(ConfigurationError, match=f"{flag(option)} {broken}"):
        serve(Settings(**{"tls_cert_file": certificate, option: broken}))


def test_a_key_that_needs_a_password_is_refused_and_nobody_is_asked_for_it(certificate: Path, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.pem"
    key = load_pem_private_key(certificate.read_bytes(), None)
    encrypted.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")))
    with pytest.raises(ConfigurationError):
        context(Settings(tls_cert_file=certificate, tls_key_file=encrypted))


def test_a_key_without_a_certificate_is_a_wrong_call() -> None:
    with pytest.raises(ConfigurationError, match="needs tls_cert_file"):
        Settings.load(tls_key_file="key.pem")

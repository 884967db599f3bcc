"""The certificates of HTTPS, read once, before anything listens; whatever is wrong is said of its file."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from lengthwise.errors import ConfigurationError
from lengthwise.settings import Settings, flag


def context(settings: Settings) -> ssl.SSLContext | None:
    """What HTTPS needs of the options; None where plain HTTP is served.

    Raises:
        ConfigurationError: A file cannot be read, or does not hold what it should.
    """
    certificate, key, authorities = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    if certificate is None:
        return None
    for option, path in (("tls_cert_file", certificate), ("tls_key_file", key), ("tls_client_ca_file", authorities)):
        if path is not None:
            _check_readable(option, path)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = f"{flag('tls_cert_file')} {certificate}" + ("" if key is None else f" and {flag('tls_key_file')} {key}")
    try:
        made.load_cert_chain(certificate, key, password=lambda: _refuse_encrypted(key or certificate))
    except ssl.SSLError as error:
        raise ConfigurationError(f"{files}: no certificate with its private key, in PEM ({_said(error)})") from error
    if authorities is not None:
        try:
            made.load_verify_locations(authorities)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"{flag('tls_client_ca_file')} {authorities}: no certificates in PEM ({_said(error)})"
            ) from error
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def _check_readable(option: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{flag(option)} {path} cannot be read: {error.strerror}") from error


def _refuse_encrypted(path: Path) -> NoReturn:
    raise ConfigurationError(f"the private key in {path} is encrypted: nobody is there to type its password")


def _said(error: ssl.SSLError) -> str:
    """OpenSSL's reason, in words."""
    return (error.reason or "unreadable").replace("_", " ").lower()

"""Reads the certificates for HTTPS once, before the server listens. Error messages name the file that is wrong."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from lengthwise.errors import ConfigurationError
from lengthwise.settings import Settings, flag


def context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of the options; None where plain HTTP is served."""
    certificate, key, authorities = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    if certificate is None:
        return None
    for option, path in (("tls_cert_file", certificate), ("tls_key_file", key), ("tls_client_ca_file", authorities)):
        if path is not None:
            _check_readable(option, path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = f"{flag('tls_cert_file')} {certificate}" + ("" if key is None else f" and {flag('tls_key_file')} {key}")
    try:
        tls.load_cert_chain(certificate, key, password=lambda: _refuse_encrypted(key or certificate))
    except ssl.SSLError as error:
        raise ConfigurationError(f"{files}: no certificate with its private key, in PEM ({_reason(error)})") from error
    if authorities is not None:
        try:
            tls.load_verify_locations(authorities)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"{flag('tls_client_ca_file')} {authorities}: no certificates in PEM ({_reason(error)})"
            ) from error
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def _check_readable(option: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{flag(option)} {path} cannot be read: {error.strerror}") from error


def _refuse_encrypted(path: Path) -> NoReturn:
    raise ConfigurationError(f"the private key in {path} is encrypted: nobody is there to type its password")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unreadable").replace("_", " ").lower()

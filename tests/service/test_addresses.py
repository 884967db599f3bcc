"""Addresses of models: their forms, and that nothing secret in them is shown."""

import pytest

from lengthwise.addresses import is_address, names_models, parse
from lengthwise.errors import ConfigurationError

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "host", "path", "revision"),
    [
        ("hf://team/vowels", "team/vowels", "", ""),
        ("hf://team/vowels@main", "team/vowels", "", "main"),
        ("hf://team/vowels@refs%2Fpr%2F1/models/vowels/1", "team/vowels", "models/vowels/1", "refs%2Fpr%2F1"),
        ("s3://bucket", "bucket", "", ""),
        ("gs://bucket/a b/c/", "bucket", "a b/c", ""),
        ("az://container/models", "container", "models", ""),
        ("https://example.com:8443/a/models.tar", "example.com:8443", "a/models.tar", ""),
        ("oci://localhost:5000/team/vowels", "localhost:5000", "team/vowels", ""),
        (f"oci://ghcr.io/team/vowels:1@sha256:{HEX}", "ghcr.io", "team/vowels", f"sha256:{HEX}"),
    ],
)
def test_an_address_has_its_parts_and_is_its_own_text(text: str, host: str, path: str, revision: str) -> None:
    address = parse(text)
    assert (address.host, address.path, address.revision) == (host, path, revision)
    assert str(address) == text.rstrip("/")


def test_the_text_of_an_address_is_without_its_query_and_its_digest() -> None:
    address = parse(f"https://example.com/m.tar?X-Amz-Signature=secret#sha256={HEX}")
    assert str(address) == "https://example.com/m.tar"
    assert (address.query, address.digest) == ("X-Amz-Signature=secret", HEX)
    assert address.url == "https://example.com/m.tar?X-Amz-Signature=secret"


@pytest.mark.parametrize(
    "text",
    [f"hf://team/vowels@{'a' * 40}", f"s3://bucket/models#sha256={HEX}", f"oci://ghcr.io/team/vowels@sha256:{HEX}"],
)
def test_a_digest_or_a_commit_fixes_what_is_at_an_address(text: str) -> None:
    assert parse(text).is_fixed
    assert not parse(text.partition("#")[0].partition("@")[0]).is_fixed


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@example.com/m.tar",
        "hf://user:secret@huggingface.co/team/vowels",
        "s3://secret:secret@bucket/models",
        "oci://secret@ghcr.io/team/vowels",
        "http://example.com/m.tar?token=secret",
        "s3://bucket?token=secret",
        "hf://team?token=secret",
        "https://example.com/m.tar#sha256=secret",
        "ftp://user:secret@example.com/m.tar",
    ],
)
def test_a_wrong_address_is_refused_without_what_may_be_secret_in_it(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse(text)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hf://user:secret@huggingface.co/team/vowels", "HF_TOKEN"),
        ("s3://key:secret@bucket/models", "AWS_SECRET_ACCESS_KEY"),
        ("gs://key:secret@bucket/models", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://key:secret@container/models", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("https://user:secret@example.com/m.tar", "a signed URL, in the variable LENGTHWISE_MODELS"),
        ("oci://user:secret@ghcr.io/team/vowels", "docker login"),
    ],
)
def test_an_address_with_credentials_says_where_they_belong(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("oic://ghcr.io/team/vowels", "did you mean oci"),
        ("oci+native://ghcr.io/team/vowels", "no kind of address"),
        ("http://example.com/m.tar", "by https"),
        ("hf://vowels", "OWNER/NAME"),
        ("s3:/bucket/models", "s3://BUCKET"),
        ("s3://bucket/../other", "has not the form"),
        ("s3://bucket//other", "has not the form"),
        ("oci://ghcr.io/Team/Vowels", "has not the form"),
        ("hf://team/vowels\n", "has not the form"),
    ],
)
def test_a_wrong_address_says_what_is_right(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse(text)


@pytest.mark.parametrize(
    "path", ["models", "./a/b", "/srv/models", "C:/models", "package.module:factory", "hf:factory"]
)
def test_a_path_or_a_factory_is_no_address(path: str) -> None:
    assert not is_address(path)


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("http://localhost:8000", False),
        ("https://example.com/lengthwise", False),
        ("https://example.com/models.tar.gz?sig=1", True),
        ("hf://team/vowels", True),
    ],
)
def test_where_a_service_may_be_named_only_an_archive_on_the_web_is_one_of_models(text: str, models: bool) -> None:
    assert names_models(text) is models

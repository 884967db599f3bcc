"""The options of `lengthwise serve`: flag, variable, default, bounds and help of each come from one field here.

The option `max_wait_ms` has the flag `--max-wait-ms`, the variable `LENGTHWISE_MAX_WAIT_MS` and the key `max_wait_ms`
in the TOML file. A flag overrides a variable, a variable overrides the file, and the file overrides the default. This
is the only module that reads the environment; `client/proxies.py` asks Python for the proxies that stand there.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from lengthwise import addresses
from lengthwise.errors import ConfigurationError
from lengthwise.files import available_cores
from lengthwise.files import bundled_models as bundled_models
from lengthwise.versions import Policy
from lengthwise.wrong_values import nearest, no_booleans_for_numbers, sentence


def _split_at_commas(value: Any) -> Any:
    """Splits a text at its commas; returns any other value as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    """Checks the origins of web pages, and returns them.

    Raises:
        ValueError: One has another form.
    """
    for origin in value:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s,*?#@]+", origin):
            raise ValueError("an origin must be https://HOST, https://HOST:PORT, or * for all")
    return value


def _off_as_zero(value: Any) -> Any:
    """0 for `off`, also as YAML reads it; any other value as it is."""
    return 0.0 if value in ("off", "false") else value


def _auto_as_none(value: Any) -> Any:
    """Converts `auto` to None; returns any other value as it is.

    Raises:
        ValueError: It is another text that is no whole number.
    """
    if isinstance(value, str) and value != "auto" and not re.fullmatch(r"\s*-?[0-9]+\s*", value):
        raise ValueError("must be auto or a whole number")
    return None if value == "auto" else value


def _path_or_address(value: Any) -> Any:
    """Checks an address of models, and returns it as text; converts any other text to a path."""
    if addresses.is_address(value):
        addresses.parse(value)
        return value
    return Path(value) if isinstance(value, str) else value


LEAST_BODIES: Final = 4
"""`max_inflight_bytes` must be at least this many times the largest body: `[0,0,0,...]` as 64-bit tokens takes four
times the bytes of its text."""

PREFIX: Final = "LENGTHWISE_"
CONFIG_VARIABLE: Final = PREFIX + "CONFIG"
_CHANNEL_VARIABLE: Final = PREFIX + "WORKER_CHANNEL"

REMOVED: Final = {
    "breaker_retry_seconds": "a model that fails is tried again every 10 s",
    "quick_path": "an application with middleware sees every call",
    "drift_share": "--record keeps a sample of the calls, which Evidently or whylogs compares with the training data",
    "tf32": "float32 is computed as float32 on a GPU too",
    "triton_metrics": "/metrics and /v2/models/stats have these sums, under other names",
    "lend_cores": "idle cores always help",
    "judge_in_process": "new versions are verified in a process of their own",
    "record_without": "records have all fields",
    **dict.fromkeys(
        ("shadow", "shadow_share"),
        "a proxy can mirror calls to a second server, and `lengthwise score` answers recorded ones again",
    ),
}
"""What to know now about an option that was removed, by its name."""

Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_off_as_zero)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=1, le=65535)]


Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_at_commas), AfterValidator(_origins)]
"""As browsers send them in the header `origin`: scheme, host and optionally port, no path."""


class Settings(BaseSettings):
    """The options of `lengthwise serve`. A name ends with the unit of its value."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    models: Annotated[Path | str, BeforeValidator(_path_or_address)] = Field(
        default_factory=bundled_models,
        description="The model repository: a folder of NAME/VERSION folders, or an address such as hf://OWNER/NAME.",
    )
    cache: Path | None = Field(
        None,
        description="Folder for copies of models that are named by an address. Default: lengthwise in the user's cache "
        "folder.",
    )
    offline: bool = Field(
        False, description="Take models that are named by an address from the cache only, and fetch nothing."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 listens on all interfaces.")
    port: Port = Field(8000, description="Port to listen on.")
    versions: Annotated[str, AfterValidator(lambda value: (Policy.parse(value), value)[1])] = Field(
        "latest",
        description="Which verified versions to serve: latest (the highest of each name), all, or a list "
        "NAME/VERSION,...",
    )
    max_model_bytes: int | None = Field(
        None,
        ge=1,
        description="Limit of the bytes of all graphs served at once; a version that exceeds it is refused. Off "
        "by default.",
    )
    reload_seconds: float = Field(
        0,
        ge=0,
        le=86_400,
        description="How often to look for new, changed and removed versions; 0: only on SIGHUP, on load calls and "
        "when a worker is replaced.",
    )
    judge_timeout_seconds: Seconds = Field(
        120, description="Longest time to verify one version; a version that takes longer is refused."
    )
    judge_memory_bytes: int = Field(
        4 * 2**30,
        ge=2**26,
        description="Most memory for verifying one version, its files included; a version that needs more is refused.",
    )
    grpc_port: Port | None = Field(
        None, description="Port for gRPC, usually 8001. Off by default. Needs the extra grpc."
    )
    admin_port: Port | None = Field(
        None,
        description="Port for /metrics, /healthz, admin calls and the console, which the main port then does not "
        "serve. Off by default.",
    )
    console: bool = Field(
        True, description="Serve the console, a page for people, at / in a browser: on the admin port if there is one."
    )
    admin_calls: bool = Field(False, description="Allow clients to load and unload models.")
    workers: Annotated[int | None, BeforeValidator(_auto_as_none)] = Field(
        None,
        ge=1,
        le=256,
        description="Processes that serve together on the same ports. By default auto: one for each core, or for a few "
        "where there are many and models are large, if they fit into memory; on GPUs one for every three cores, up to "
        "four. Limits on bytes, steps and connections are shared by all workers.",
    )
    runners: int = Field(
        default_factory=available_cores,
        ge=1,
        le=256,
        description="Threads that run batches, of each worker. Default: the cores that affinity and cgroup quota "
        "allow, over the workers; two for each GPU.",
    )
    provider: Literal["auto", "cuda", "cpu"] = Field(
        "auto",
        description="Where models run; auto: on GPUs if onnxruntime supports them and one is available, else on "
        "the CPU.",
    )
    recurrent_kernels: bool | None = Field(
        None,
        description="Run recurrent layers, convolutions, attention and int8 on the CPU in Lengthwise's kernels; off: "
        "in onnxruntime's. By default each model is timed in both when it is loaded.",
    )
    gpu_memory_bytes: int | None = Field(
        None, ge=1, description="Limit of each model's memory arena on a GPU. Off by default."
    )
    max_batch_rows: int = Field(64, ge=1, le=4096, description="Most sequences in one batch.")
    max_batch_cost_steps: int = Field(
        16_384,
        ge=1,
        description="Most padded steps (rows x width) in one batch. Up to 4 times as many where padding is skipped, if "
        "neither this nor max_batch_rows is set.",
    )
    max_wait_ms: float = Field(
        0,
        ge=0,
        le=60_000,
        description="Longest time to wait for more requests to batch while a runner is idle; 0: do not wait.",
    )
    max_queue_cost_steps: int = Field(
        1_000_000, ge=1, description="Most padded steps that may wait in all queues; beyond it, requests get 429."
    )
    max_queue_seconds: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="Longest predicted wait in the queue; beyond it, requests get 429. Default: the default timeout.",
    )
    max_body_bytes: int = Field(
        16_777_216, ge=1, description="Largest request body, after decompression; beyond it, 413."
    )
    max_inflight_bytes: int = Field(
        268_435_456,
        ge=1,
        description="Most bytes of request and response bodies in memory at once, over all calls; beyond it, 503.",
    )
    max_sequences: int = Field(1024, ge=1, description="Most sequences in one request; beyond it, 413.")
    default_timeout_ms: float = Field(30_000, gt=0, le=86_400_000, description="Timeout of a request that gives none.")
    drain_seconds: float = Field(
        30, ge=0, le=86_400, description="Longest time that a shutdown waits for accepted requests."
    )
    hung_seconds: float = Field(
        60,
        ge=1,
        le=86_400,
        description="A batch that runs for longer than this, and for many times longer than predicted, hangs: /livez "
        "then fails. Of several workers, one whose event loop does not run for so long is replaced.",
    )
    header_timeout_seconds: float = Field(
        10, gt=0, le=3600, description="Longest time for a request's headers to arrive."
    )
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        le=3600,
        description="How long a connection stays open without a request; longer than proxies keep theirs.",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="Most connections at once, over HTTP and gRPC together: half of them each, where gRPC is on. Fewer "
        "if the process may open fewer files.",
    )
    tls_cert_file: Path | None = Field(None, description="Certificate chain (PEM): serves HTTPS.")
    tls_key_file: Path | None = Field(None, description="Its private key (PEM); default: in the certificate's file.")
    tls_client_ca_file: Path | None = Field(
        None, description="Certificate authorities (PEM): clients must present a certificate of one of them."
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, one per line: all but /livez, /readyz, /ping and the page of the console then "
        "need 'authorization: Bearer KEY'.",
    )
    state_key_file: Path | None = Field(
        None,
        description="File of keys, one per line, at least 32 bytes as hexadecimal digits: states are then signed with "
        "the first, and only those signed with one of them are taken. Read again on SIGHUP.",
    )
    cors_origins: Origins = Field(
        (), description="Origins whose web pages may call this server, separated by commas; * for all. Default: none."
    )
    access_log: Share = Field(0, description="Share of calls that get a line in the access log: off, or 0 to 1.")
    verify_share: Share = Field(
        0,
        description="Share of calls for which one sequence is run again unbatched, when no caller waits, and compared: "
        "off, or 0 to 1.",
    )
    record: Path | None = Field(
        None, description="Folder for Parquet files of sampled calls. Off by default. Needs the extra parquet."
    )
    record_share: Share = Field(0.01, description="Share of calls that are recorded: off, or 0 to 1.")
    record_max_bytes: int = Field(
        2**30, ge=2**20, description="Most bytes of all record files; beyond it the oldest are removed."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest severity to log.")
    log_format: Literal["text", "json"] = Field("text", description="Format of the log lines, on stderr.")

    _address: str | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        """Refuses true and false for numbers."""
        return no_booleans_for_numbers(values, {name: field.annotation for name, field in cls.model_fields.items()})

    @field_validator("host", "models", "cache", "record", mode="before")
    @classmethod
    def _is_not_empty(cls, value: Any) -> Any:
        """Refuses an empty text, often of a variable that was not set: it would be all hosts, or the working directory.

        Raises:
            ValueError: The value is empty.
        """
        if isinstance(value, str) and not value.strip():
            raise ValueError("must not be empty")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Checks the options that depend on each other.

        Raises:
            ValueError: Two contradict each other.
        """
        if self.max_batch_cost_steps > self.max_queue_cost_steps:
            raise ValueError(
                f"{self._option_text('max_queue_cost_steps')} must be at least "
                f"{self._option_text('max_batch_cost_steps')}: a queue must hold what one batch may; raise the first "
                "or lower the second"
            )
        if self.max_inflight_bytes < LEAST_BODIES * self.max_body_bytes:
            raise ValueError(
                f"{self._option_text('max_inflight_bytes')} must be at least {LEAST_BODIES} times "
                f"{self._option_text('max_body_bytes')}: the largest body takes up to that much when it is read"
            )
        for name, needed, what in (
            ("tls_key_file", "tls_cert_file", "the certificate that belongs to it"),
            ("tls_client_ca_file", "tls_cert_file", "the certificate that belongs to it"),
            ("record_share", "record", "the folder in which calls are recorded"),
        ):
            needs_none = getattr(self, name) in (type(self).model_fields[name].default, 0.0)  # 0: nothing is recorded
            if not needs_none and getattr(self, needed) is None:
                raise ValueError(f"{name} needs {needed}, {what}")
        ports = [name for name in ("port", "grpc_port", "admin_port") if getattr(self, name) is not None]
        for first, second in itertools.combinations(ports, 2):
            if getattr(self, first) == getattr(self, second):
                raise ValueError(f"{self._option_text(first)} and {self._option_text(second)} must differ")
        return self

    @property
    def folder(self) -> Path:
        """The folder of the models. For models at an address, that is the copy, in the settings of `with_copy` only."""
        return Path(self.models)

    @property
    def address(self) -> str | None:
        """The address of the models; None if they are in a folder of the user."""
        return self.models if isinstance(self.models, str) else self._address

    def with_copy(self, folder: Path) -> Settings:
        """A copy of the settings whose models are in a folder: the copy of those at the address, which it keeps."""
        settings = self.model_copy(update={"models": folder})
        settings._address = self.address
        return settings

    @property
    def longest_wait_seconds(self) -> float:
        """How long a request may wait in the queue: `max_queue_seconds`, or by default the default timeout."""
        return self.default_timeout_ms / 1000 if self.max_queue_seconds is None else self.max_queue_seconds

    def of_worker(self, workers: int) -> dict[str, Any]:
        """The options of one of several workers, for JSON: those that are set, with its share of the common limits."""
        # A share must still be a valid value: at least 1, and of the queue, at least one batch.
        least = {
            "max_queue_cost_steps": self.max_batch_cost_steps,
            **dict.fromkeys(("max_connections", "max_model_bytes", "gpu_memory_bytes"), 1),
        }
        shares = {
            name: max(least_share, limit // workers)
            for name, least_share in least.items()
            if (limit := getattr(self, name)) is not None
        }
        # Bytes in flight are not divided, since a body may be larger than a share: a worker may have what others leave.
        shares["max_inflight_bytes"] = max(self.max_inflight_bytes, workers * LEAST_BODIES * self.max_body_bytes)
        return self.model_dump(mode="json", include=self.model_fields_set) | {"workers": workers} | shares

    def _option_text(self, name: str) -> str:
        """An option's name and value for a message, and whether it is the default: `port (8000, the default)`."""
        by_default = "" if name in self.model_fields_set else ", the default"
        return f"{name} ({getattr(self, name)}{by_default})"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources of options in the order of precedence: flags, variables, the file that `LENGTHWISE_CONFIG` names.

        Raises:
            ConfigurationError: There is no such file, or it is not TOML.
        """
        file = os.environ.get(CONFIG_VARIABLE)
        sources = [init_settings, env_settings]
        if file:
            if not Path(file).is_file():
                raise ConfigurationError(f"{CONFIG_VARIABLE}: there is no file {file}")
            try:
                sources.append(TomlConfigSettingsSource(settings_cls, toml_file=file))
            except (OSError, ValueError) as error:  # tomllib's error is a ValueError, and so is one of decoding
                raise ConfigurationError(f"{CONFIG_VARIABLE}: {file} cannot be read as TOML: {error}") from error
        return tuple(sources)

    @classmethod
    def load(cls, **flags: Any) -> Settings:
        """Reads the settings from flags (None: not set), variables, the file and defaults.

        Raises:
            ConfigurationError: A value is wrong, or a variable belongs to no option; the message names all of them.
        """
        from_flags = {name: value for name, value in flags.items() if value is not None}
        unknown = [
            name
            for name in os.environ
            if name.startswith(PREFIX)
            and name != CONFIG_VARIABLE
            and name.removeprefix(PREFIX).lower() not in cls.model_fields
        ]
        if unknown:
            names = [name.upper() for name in cls.model_fields]
            listed = ", ".join(
                name + (_removal_text(name.removeprefix(PREFIX)) or nearest(name.removeprefix(PREFIX), names, PREFIX))
                for name in sorted(unknown)
            )
            raise ConfigurationError(
                f"no option belongs to the variable {listed}; `lengthwise serve --help` lists them"
            )
        try:
            return cls(**from_flags)
        except ValidationError as error:
            raise ConfigurationError("; ".join(_sentence(item, from_flags) for item in error.errors())) from error


def cache_folder() -> Path:
    """The folder for fetched models, in the user's cache folder.

    Raises:
        ConfigurationError: The user has no home folder, as in some containers.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(caches):
        raise ConfigurationError(
            f"there is no home folder for a cache; name a folder in {PREFIX}CACHE, or by serve --cache"
        )
    return Path(caches) / "lengthwise"


def docker_folder() -> Path:
    """The folder with the configuration of the command `docker`."""
    return Path(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"))


def passed_to_worker(channel: int) -> dict[str, str]:
    """The environment of a worker process. It has no options, which come over the channel, of this descriptor."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    return environment | {_CHANNEL_VARIABLE: str(channel)}


def take_channel_of_worker() -> int | None:
    """Takes the descriptor of this process's channel to its parent out of the environment; None if it is no worker."""
    descriptor = os.environ.pop(_CHANNEL_VARIABLE, None)
    return None if descriptor is None else int(descriptor)


def open_telemetry_variables() -> dict[str, str]:
    """The environment variables of OpenTelemetry, which has names of its own for all its options."""
    return {name: text for name, text in os.environ.items() if name.startswith("OTEL_")}


def prepare_grpc() -> None:
    """Sets two options of gRPC, before it is imported, unless the environment has them.

    - It reads sockets in the thread that waits for events: a thread of its own costs a fifth of a call.
    - It does nothing at a fork: a child process here is another program at once, and uvloop starts one by a fork. gRPC
      would write a line to stderr each time, which no option of the log governs.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def passed_to_children() -> dict[str, str]:
    """The environment of a child process that runs models; nothing in it may be a secret."""
    names = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
    return {name: text for name, text in os.environ.items() if name in names or name.startswith(("CUDA_", "NVIDIA_"))}


def mmap_threshold_is_set() -> bool:
    """Whether the environment sets glibc's threshold above which a block of memory is mapped by itself (mmap)."""
    is_tuned = "glibc.malloc.mmap_" in os.environ.get("GLIBC_TUNABLES", "")
    return is_tuned or any(name.startswith("MALLOC_MMAP_") for name in os.environ)


def _removal_text(name: str) -> str:
    """The text that follows the name of an option that was removed, with what to know now; '' for any other name."""
    hint = REMOVED.get(name.lower())
    return f" (gone: {hint})" if hint else ""


def flag(name: str) -> str:
    """The flag of a field: `--max-wait-ms` for `max_wait_ms`."""
    return "--" + name.replace("_", "-")


def _sentence(item: ErrorDetails, from_flags: dict[str, Any]) -> str:
    """The message for one wrong option: where it was set (flag, variable or file), what it must be, and its value.

    `item` is pydantic's error; `from_flags` are the options that were set by flags.
    """
    name = ".".join(str(key) for key in item["loc"])
    if not name:  # several options contradict each other
        return sentence(item)
    # Where it was set: a flag overrides a variable, a variable the file
    variable = PREFIX + str(item["loc"][0]).upper()
    if name in from_flags:
        source = flag(name)
    elif variable in os.environ:
        source = variable
    else:
        source = f"{name} in the configuration file {os.environ.get(CONFIG_VARIABLE)}"
    if item["type"] == "extra_forbidden":
        hint = _removal_text(name) or nearest(name, Settings.model_fields)
        return f"no option belongs to the key {source}{hint}; `lengthwise serve --help` lists the options"
    return f"{source}: {sentence(item)}, got {item['input']!r}"

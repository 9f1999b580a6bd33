"""The settings of the PACS service: frozen dataclasses, read strictly from one TOML file."""

from __future__ import annotations

import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hemolens.config import from_mapping
from hemolens.errors import ConfigError
from hemolens.pacs.security import AllowList, TlsClient, TlsServer

FILE_KEYS = frozenset({"path", "certificate", "key", "ca", "client_ca", "token_file", "secret_file"})
"""Settings that name a file or folder: a relative one is taken from the folder of the TOML file."""


@dataclass(frozen=True)
class ListenerConfig:
    """The C-STORE and C-ECHO provider."""

    host: str = "127.0.0.1"
    port: int = 11112
    ae_title: str = "HEMOLENS"
    allow: AllowList = field(default_factory=AllowList)
    """Who may call."""
    require_called_ae_title: bool = True
    """Whether callers must name `ae_title`."""
    tls: TlsServer | None = None
    max_pdu: int = 131072
    """Bytes of one PDU."""
    max_associations: int = 16
    """At once, for each process."""
    processes: int = 1
    """How many share the port; the system spreads connections over them."""
    max_instance_mb: float = 1024.0
    """Size of one instance; a longer one ends the association."""
    timeout_s: float = 60.0
    """Silence after which an association is ended."""
    pdu_timeout_s: float = 120.0
    """Time that one PDU may take to arrive."""

    def __post_init__(self) -> None:
        _check_ae_titles((self.ae_title,))
        _check_range("port", self.port, 0, 65535)
        _check_range("max_pdu", self.max_pdu, 4096, 16 * 1024**2)
        _check_range("max_associations", self.max_associations, 1, 1000)
        _check_range("processes", self.processes, 1, 64)
        if self.processes > 1 and self.port == 0:
            raise ValueError("port must be named where several processes share it")
        if self.processes > 1 and not hasattr(socket, "SO_REUSEPORT"):
            raise ValueError("processes must be 1: this system does not let several share a port")
        _check_positive(self, "max_instance_mb", "timeout_s", "pdu_timeout_s")


@dataclass(frozen=True)
class SpoolConfig:
    """Where instances and results lie."""

    path: str = "spool"
    quota_gb: float = 50.0
    """Size of the spool at which the listener refuses with 0xA700."""
    min_free_gb: float = 2.0
    """Free space of the disk below which it refuses."""
    retention_days: float = 7.0
    """Age after which what has been delivered or ignored is purged."""

    def __post_init__(self) -> None:
        _check_positive(self, "quota_gb", "retention_days")
        if self.min_free_gb < 0:
            raise ValueError("min_free_gb must not be negative")


@dataclass(frozen=True)
class QueueConfig:
    """The durable queue."""

    url: str = ""
    """``sqlite:///path`` or ``postgresql://user@host/database``; empty for ``queue.db`` in the spool."""


@dataclass(frozen=True)
class CompletionConfig:
    """When a series is taken as complete."""

    stable_age_s: float = 10.0
    """Seconds without a new instance."""
    query: str = ""
    """Name of a DICOM destination that is asked for NumberOfSeriesRelatedInstances; empty for none."""
    wait_s: float = 600.0
    """How long to wait for instances that the query says are missing; then what is there is analyzed."""
    interval_s: float = 1.0
    """How often to look."""

    def __post_init__(self) -> None:
        _check_positive(self, "stable_age_s", "wait_s", "interval_s")


@dataclass(frozen=True)
class WorkerConfig:
    """The analysis."""

    processes: int = 1
    """On this host; 0 where other hosts do the work."""
    model: str = ""
    """Name or path as for ``hemolens analyze --model``; empty for the default."""
    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    threads: int = 0
    """Processor threads of each worker; 0 for all cores."""
    timeout_s: float = 900.0
    """Time for one series; a worker that takes longer is ended and the series tried again."""
    lease_s: float = 60.0
    """Time after which the job of a dead worker goes to another; living ones renew it."""
    attempts: int = 3
    """Tries before a job is dead."""
    backoff_s: float = 10.0
    """Wait before the second try; doubles with each further one."""
    summary_image: bool = False
    """Whether to send a secondary capture as well."""

    def __post_init__(self) -> None:
        _check_range("processes", self.processes, 0, 256)
        _check_range("threads", self.threads, 0, 1024)
        _check_range("attempts", self.attempts, 1, 1000)
        _check_positive(self, "timeout_s", "lease_s", "backoff_s")


@dataclass(frozen=True)
class SenderConfig:
    """How results are sent."""

    attempts: int = 20
    """Tries before a delivery is a dead letter."""
    backoff_s: float = 5.0
    """Wait before the second try; doubles with each further one."""
    backoff_max_s: float = 900.0
    timeout_s: float = 60.0
    """Of a connection and of an answer."""
    lease_s: float = 120.0
    """Time after which the deliveries of a dead sender are taken up again."""
    interval_s: float = 1.0
    """How often to look for something to send."""

    def __post_init__(self) -> None:
        _check_range("attempts", self.attempts, 1, 100000)
        _check_positive(self, "backoff_s", "backoff_max_s", "timeout_s", "lease_s", "interval_s")


@dataclass(frozen=True)
class DicomDestination:
    """A peer that takes results by C-STORE."""

    kind: Literal["dicom"] = "dicom"
    name: str = "pacs"
    ae_title: str = "PACS"
    """What the peer is called."""
    host: str = "127.0.0.1"
    port: int = 104
    calling_ae_title: str = ""
    """What this end is called; empty for the listener's title."""
    tls: TlsClient | None = None
    commitment: bool = False
    """Whether to ask for storage commitment."""
    availability: bool = False
    """Whether to send instance availability notifications."""

    def __post_init__(self) -> None:
        _check_ae_titles((self.ae_title, *([self.calling_ae_title] if self.calling_ae_title else [])))
        _check_range("port", self.port, 1, 65535)
        _check_name(self.name)


@dataclass(frozen=True)
class WebDestination:
    """A peer that takes results by STOW-RS."""

    kind: Literal["dicomweb"] = "dicomweb"
    name: str = "pacs"
    url: str = ""
    """Base of its DICOMweb service, such as ``https://pacs/dicom-web``."""
    token_file: str = ""
    """File with a bearer token."""
    tls: TlsClient | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("url must start with http:// or https://")


@dataclass(frozen=True)
class ApiConfig:
    """The HTTP API with the worklist page."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 8642
    tls: TlsServer | None = None
    token_file: str = ""
    """File with one bearer token a line; needed beyond localhost unless client certificates are asked for."""
    viewer_url: str = ""
    """Link to a study in a viewer; ``{study}`` stands for its UID."""

    def __post_init__(self) -> None:
        _check_range("port", self.port, 0, 65535)


@dataclass(frozen=True)
class WebhookConfig:
    """A call that is made on a positive."""

    url: str = ""
    """Empty for none."""
    secret_file: str = ""
    """File with the key of the HMAC-SHA256 signature."""
    attempts: int = 10
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must start with http:// or https://")
        if self.url and not self.secret_file:
            raise ValueError("secret_file is missing: the call is always signed")


Destination = DicomDestination | WebDestination


@dataclass(frozen=True)
class PacsConfig:
    """All settings of ``hemolens pacs``."""

    listener: ListenerConfig = field(default_factory=ListenerConfig)
    spool: SpoolConfig = field(default_factory=SpoolConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    completion: CompletionConfig = field(default_factory=CompletionConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    sender: SenderConfig = field(default_factory=SenderConfig)
    destinations: tuple[DicomDestination | WebDestination, ...] = ()
    api: ApiConfig = field(default_factory=ApiConfig)
    webhook: WebhookConfig = field(default_factory=WebhookConfig)

    def __post_init__(self) -> None:
        names = [d.name for d in self.destinations]
        doubled = {n for n in names if names.count(n) > 1}
        if doubled:
            raise ValueError(f"two destinations are called {sorted(doubled)[0]!r}; give each its own name")
        if self.completion.query and not isinstance(self.destination(self.completion.query), DicomDestination):
            raise ValueError(f"completion.query: {self.completion.query!r} is no DICOM destination")

    @property
    def queue_url(self) -> str:
        """URL of the queue, the default filled in."""
        return self.queue.url or f"sqlite:///{Path(self.spool.path).absolute() / 'queue.db'}"

    def destination(self, name: str) -> Destination | None:
        """Return the destination of that name."""
        return next((d for d in self.destinations if d.name == name), None)


def load_pacs_config(path: str | Path) -> PacsConfig:
    """Read the settings of the PACS service.

    Parameters
    ----------
    path
        A TOML file; relative paths in it are taken from its folder.

    Raises
    ------
    ConfigError
        If it cannot be read, or a setting is unknown or does not fit.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML file ({error}).") from error
    try:
        config = from_mapping(PacsConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return with_base(config, path.absolute().parent)


def with_base(config: PacsConfig, base: Path) -> PacsConfig:
    """Return the settings with every relative path taken from `base`."""
    based: PacsConfig = _with_base(config, base)
    url = based.queue.url
    if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        based = replace(based, queue=QueueConfig(f"sqlite:///{base / url.removeprefix('sqlite:///')}"))
    return based


def _with_base(value: Any, base: Path) -> Any:
    if isinstance(value, tuple):
        return tuple(_with_base(v, base) for v in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **dict(_based_fields(value, base)))


def _based_fields(value: Any, base: Path) -> Iterator[tuple[str, Any]]:
    for name in (f.name for f in fields(value)):
        told = getattr(value, name)
        is_file = name in FILE_KEYS and isinstance(told, str) and told
        yield name, str(base / told) if is_file else _with_base(told, base)


def _check_ae_titles(titles: tuple[str, ...]) -> None:
    for title in titles:
        if not title.strip() or len(title) > 16 or not title.isascii() or not title.isprintable() or "\\" in title:
            raise ValueError(f"{title!r} is no AE title: 1 to 16 ASCII characters, no backslash")


def _check_name(name: str) -> None:
    if not name or len(name) > 64 or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"name {name!r}: use letters, digits, - and _")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}")


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0")

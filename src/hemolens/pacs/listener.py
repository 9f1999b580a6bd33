"""The listener: a C-STORE and C-ECHO provider that answers Success only when an instance is safely kept."""

from __future__ import annotations

import hashlib
import logging
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pynetdicom import (
    AE,
    ALL_TRANSFER_SYNTAXES,
    PYNETDICOM_IMPLEMENTATION_UID,
    AllStoragePresentationContexts,
    evt,
)
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    Verification,
)

from hemolens.errors import ConfigError, DecodeError, HemolensError, OutputError, QueueError
from hemolens.pacs.config import PacsConfig
from hemolens.pacs.guard import GuardedServer, Limits, no_delay
from hemolens.pacs.incoming import Header, read_file_header, read_header
from hemolens.pacs.queue import Kept, Queue, Received
from hemolens.pacs.reception import Buffer, StoreRequest
from hemolens.pacs.recorder import Recorder
from hemolens.pacs.security import check_dicom_port, server_context
from hemolens.pacs.spool import FullError, Spool, short_hash

LOGGER = logging.getLogger("hemolens.pacs.listener")
NOT_TAKEN = frozenset(
    {
        # A small message unpacks to any size.
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.8.1",
        "1.2.840.10008.1.2.4.95",
        "1.2.840.10008.1.2.4.205",
        # The pixels lie elsewhere: what is kept would not be the image.
        "1.2.840.10008.1.2.4.94",
        "1.2.840.10008.1.2.4.204",
        # Streams of an operating room (PS3.22), not for storage.
        "1.2.840.10008.1.2.7.1",
        "1.2.840.10008.1.2.7.2",
        "1.2.840.10008.1.2.7.3",
    }
)
"""Transfer syntaxes that pynetdicom knows and the listener refuses."""
TAKEN = tuple(syntax for syntax in ALL_TRANSFER_SYNTAXES if syntax not in NOT_TAKEN)
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
MISMATCH = 0xA900
MISMATCH_WARNING = 0xB007
"""Kept, and something is at odds (PS3.4 B.2.3: data set does not match SOP class; the nearest of the warnings)."""
CANNOT_UNDERSTAND = 0xC000
MIB = 1024**2
PREAMBLE = b"\0" * 128 + b"DICM"
VERSION_ELEMENT = b"\x02\0\x01\0OB\0\0\x02\0\0\0\0\x01"
"""File Meta Information Version, (0002,0001)."""
MESSAGE_OVERHEAD = 65536
"""What a message may have beside its instance."""


class Listener:
    """A port that takes instances.

    Parameters
    ----------
    config
        The settings.
    queue, spool
        Where instances are kept.

    Raises
    ------
    ConfigError
        If strangers could reach the port, or it cannot be opened.
    """

    def __init__(self, config: PacsConfig, queue: Queue, spool: Spool) -> None:
        settings = config.listener
        check_dicom_port(settings.host, settings.allow, settings.tls)
        self._queue, self._spool, self._config = queue, spool, config
        self._recorder = Recorder(queue)
        self._salt = queue.salt()
        self._limit = int(settings.max_instance_mb * MIB)
        limits = Limits(
            pdu_bytes=settings.max_pdu + MESSAGE_OVERHEAD,
            pdu_s=settings.pdu_timeout_s,
            instance_bytes=self._limit + MESSAGE_OVERHEAD,
            connections=settings.max_associations,
        )
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_N_EVENT_REPORT, self._on_commitment),
            (evt.EVT_REQUESTED, self._on_request),
            (evt.EVT_CONN_OPEN, no_delay),
        ]
        try:
            self._server: Any = _entity(config).make_server(
                (settings.host, settings.port),
                evt_handlers=handlers,
                ssl_context=server_context(settings.tls) if settings.tls else None,
                server_class=GuardedServer,
                limits=limits,
                refusal=self._refusal_of_address,
                handler=self._on_store,
                shared=settings.processes > 1,
            )
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise ConfigError(
                f"listener: {where} cannot be opened ({error.strerror}). Choose another port or host."
            ) from error
        self._server.ae._servers.append(self._server)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True, name="listener")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, the port as the system chose it where 0 was asked for."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Begin to take connections, after what a killed listener left was recorded."""
        adopted = adopt(self._queue, self._spool)
        if adopted:
            LOGGER.info("recorded %d instances that were on disk already", adopted)
        self._thread.start()

    def stop(self, grace_s: float = 5.0) -> None:
        """Take no more connections, give those that are open a while, then end them."""
        with suppress(ValueError):
            self._server.shutdown()
        waited = threading.Event()
        for _ in range(int(grace_s / 0.1)):
            if not self._server.active_associations:
                break
            waited.wait(0.1)
        for association in self._server.active_associations:
            association.abort()

    @property
    def alive(self) -> bool:
        """Whether the port is served."""
        return self._thread.is_alive()

    def _refusal_of_address(self, address: str) -> str:
        allow = self._config.listener.allow
        titles = allow.ae_titles
        return allow.refusal(titles[0] if titles else "", address)

    def _on_request(self, event: evt.Event) -> None:
        """Turn away a caller that is not on the list of AE titles; one in `require_calling_aet` is compared padded."""
        requested = event.assoc.requestor
        reason = self._config.listener.allow.refusal(str(requested.ae_title), str(requested.address))
        if reason:
            LOGGER.warning("a caller was turned away: %s", reason)

    def _on_store(self, association: Association, request: StoreRequest, parts: Sequence[Buffer]) -> int:
        try:
            return self._store(association, request, parts)
        except FullError as error:
            LOGGER.error("refused an instance with 0xA700: %s", error)
            return OUT_OF_RESOURCES
        except (OutputError, QueueError) as error:
            LOGGER.error("could not keep an instance, answered 0xA700: %s", error)
            return OUT_OF_RESOURCES
        except DecodeError as error:
            LOGGER.warning("refused an instance with 0xC000: %s", error.problem)
            return CANNOT_UNDERSTAND

    def _store(self, association: Association, request: StoreRequest, parts: Sequence[Buffer]) -> int:
        told = (request.sop_class, request.sop_uid)
        head = file_head(*told, request.transfer_syntax)
        content = b"".join((head, *parts))
        header = read_header(content, request.transfer_syntax, self._salt, len(head))
        if told != (header.sop_class, header.sop_uid):
            LOGGER.warning("refused an instance with 0xA900: its UIDs are not those that the request names")
            return MISMATCH
        peer = association.requestor
        calling = (str(peer.ae_title).strip(), str(peer.address))
        # The file meta information tells who sent it; only the data set counts for what is the same.
        digest = hashlib.sha256(memoryview(content)[len(head) :]).hexdigest()
        kept = keep(self._queue, self._spool, header, content, digest, calling, self._recorder.keep)
        if kept is Kept.CONFLICT:
            LOGGER.warning(
                "series %s: an instance is at odds with a kept one; kept aside", short_hash(header.series_uid)
            )
            return MISMATCH_WARNING
        return SUCCESS

    def _on_commitment(self, event: evt.Event) -> tuple[int, None]:
        """Take a peer's answer to a request for storage commitment (PS3.4 J.3.3)."""
        try:
            record_commitment(self._queue, event.event_information)
        except HemolensError as error:
            LOGGER.error("could not record a storage commitment: %s", error)
            return 0x0110, None
        except Exception:  # noqa: BLE001 - what a peer sends makes pydicom raise anything
            LOGGER.warning("a storage commitment report could not be read")
            return 0x0110, None
        return SUCCESS, None


def file_head(sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """Return what stands before a data set in a file: preamble and file meta information (PS3.10 7.1)."""
    named = ((0x0002, sop_class), (0x0003, sop_uid), (0x0010, syntax), (0x0012, PYNETDICOM_IMPLEMENTATION_UID))
    elements = [VERSION_ELEMENT]
    for number, uid in named:
        value = uid.encode("ascii")
        value += b"\0" * (len(value) % 2)
        elements.append(struct.pack("<HH2sH", 2, number, b"UI", len(value)) + value)
    meta = b"".join(elements)
    return PREAMBLE + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


def keep(
    queue: Queue,
    spool: Spool,
    header: Header,
    content: bytes,
    digest: str,
    calling: tuple[str, str],
    record: Callable[[Received], Kept] | None = None,
) -> Kept:
    """Keep an instance durably: file first, then row.

    Parameters
    ----------
    queue, spool
        Where.
    header
        Of the instance.
    content
        The whole file.
    digest
        SHA-256 of its data set.
    calling
        AE title and address of the peer.
    record
        Records it; `Queue.keep` unless given.

    Returns
    -------
    Kept
        ``new``, ``same`` or ``conflict``; kept in each case.

    Raises
    ------
    OutputError, QueueError
        If it could not be kept.
    """
    path = spool.path_of(header.study_uid, header.series_uid, header.sop_uid)
    stored = spool.store(path, content)
    received = Received(
        sop_uid=header.sop_uid,
        series_uid=header.series_uid,
        study_uid=header.study_uid,
        patient_key=header.patient_key,
        modality=header.modality,
        kind=header.kind,
        path=path,
        size=len(content),
        sha256=digest,
        received=queue.now(),
        calling_ae=calling[0],
        calling_address=calling[1],
        accession_hash=header.accession_hash,
        acquired=header.acquired,
    )
    kept = (record or queue.keep)(received)
    if kept is Kept.NEW and not spool.has(path):  # it lay there from before and was purged in this moment
        spool.store(path, content)
    if kept is Kept.CONFLICT and not stored.conflict:
        known = queue.instance_kept(header.sop_uid)
        if known is None or known.path != path:
            spool.set_aside(path)
    return kept


def adopt(queue: Queue, spool: Spool) -> int:
    """Record the instances on disk that no row tells of: their listener died before it could. Return how many.

    They were not acknowledged, so that their sender sends them again; but what is on disk is never thrown away.
    """
    spool.tidy()
    salt, adopted = queue.salt(), 0
    for path in list(spool.unknown(queue.known_paths())):
        file = spool.root / path
        try:
            content = file.read_bytes()
            header = read_file_header(content, salt)
        except FileNotFoundError:
            continue
        except DecodeError:
            LOGGER.warning("%s cannot be read and was kept aside", path)
            spool.set_aside(path)
            continue
        keep(queue, spool, header, content, hashlib.sha256(_data_of(content)).hexdigest(), ("", ""))
        adopted += 1
    return adopted


def _data_of(content: bytes) -> bytes:
    """Return the data set of a file, without preamble and file meta information (PS3.10 7.1)."""
    length = int.from_bytes(content[140:144], "little")
    return content[144 + length :]


def record_commitment(queue: Queue, report: Any) -> None:
    """Record what a storage commitment report says of each instance."""
    transaction = str(report.TransactionUID)
    for item in report.get("ReferencedSOPSequence") or ():
        queue.commit(transaction, str(item.ReferencedSOPInstanceUID))
    for item in report.get("FailedSOPSequence") or ():
        reason = f"the peer does not commit to keep it (0x{int(item.get('FailureReason') or 0):04X})"
        queue.commit(transaction, str(item.ReferencedSOPInstanceUID), reason)


class _Entity(AE):
    """Counts associations that were asked for: a connection that says nothing, such as a probe, takes no place."""

    @property
    def active_associations(self) -> list[Association]:
        return [assoc for assoc in super().active_associations if assoc.requestor.primitive is not None]


def _entity(config: PacsConfig) -> AE:
    settings = config.listener
    entity = _Entity(ae_title=settings.ae_title)
    entity.maximum_associations = settings.max_associations
    entity.maximum_pdu_size = settings.max_pdu
    entity.network_timeout = settings.timeout_s
    entity.dimse_timeout = settings.timeout_s
    entity.acse_timeout = min(30.0, settings.timeout_s)
    entity.require_called_aet = settings.require_called_ae_title
    entity.require_calling_aet = [title.strip() for title in settings.allow.ae_titles]
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax or "", list(TAKEN))
    entity.add_supported_context(Verification)
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    return entity

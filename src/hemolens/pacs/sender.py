"""The sender: takes results from the queue to their destinations, tries again with growing pauses, and never twice."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    InstanceAvailabilityNotification,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from hemolens.errors import QueueError
from hemolens.pacs.completion import associate
from hemolens.pacs.config import Destination, DicomDestination, PacsConfig, WebDestination
from hemolens.pacs.queue import Delivery, Queue
from hemolens.pacs.security import TlsClient, client_context
from hemolens.pacs.spool import Spool

LOGGER = logging.getLogger("hemolens.pacs.sender")
BATCH = 16
"""Objects for one association."""
COMMITMENT_WAIT_S = 600.0
"""A peer that has not answered a request for storage commitment is asked again after this."""
FOREIGN = ((0xA900, 0xA9FF), (0x0122, 0x0122), (0x0124, 0x0124))
"""Refusals for good: the object does not fit, its class is not taken, not authorized."""
STATUS_TEXT = {
    0xA700: "the peer is out of resources",
    0xA900: "the peer says that the object does not fit its class",
    0xC000: "the peer cannot understand the object",
    0x0122: "the peer does not take this SOP class",
    0x0124: "the peer does not allow it",
}
FINAL_HTTP = frozenset({400, 403, 405, 413, 415, 501})


class RefusedError(Exception):
    """An object did not arrive.

    Parameters
    ----------
    message
        Why.
    final
        Whether another try is of no use.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        self.final = final
        super().__init__(message)


Send = Callable[[Path], None]
"""Brings one file to the peer, or raises `RefusedError`."""
Notify = Callable[[Sequence[Delivery]], None]
"""Tells the peer of what it has taken."""


@dataclass(frozen=True)
class Courier:
    """Serves one destination."""

    config: PacsConfig
    destination: Destination
    queue: Queue
    spool: Spool

    def run(self, stop: threading.Event) -> None:
        """Send until told to stop."""
        while not stop.is_set():
            try:
                busy = self.send_due() + self.ask_for_commitment()
            except QueueError as error:
                LOGGER.error("%s", error)
                busy = 0
            if not busy:
                stop.wait(self.config.sender.interval_s)

    def send_due(self) -> int:
        """Send what is due; return how many objects were tried."""
        due = self.queue.claim_deliveries(self.destination.name, self.config.sender.lease_s, BATCH)
        if not due:
            return 0
        try:
            with self._connected(due) as (send, notify):
                sent = self._send_all(due, send)
                if sent:
                    notify(sent)
        except RefusedError as error:  # no connection: none of them was tried
            for delivery in due:
                self._fail(delivery, error)
        return len(due)

    def _send_all(self, due: Sequence[Delivery], send: Send) -> list[Delivery]:
        held: set[str] = set()
        sent = []
        for delivery in due:
            try:
                if delivery.job_id in held:
                    raise RefusedError("waits for an object of the same result that was not taken")
                send(self.spool.root / delivery.path)
            except RefusedError as error:
                held.add(delivery.job_id)
                self._fail(delivery, error)
                continue
            self.queue.finish_delivery(delivery)
            sent.append(delivery)
            LOGGER.info("job %s: an object was taken by %s", delivery.job_id, delivery.destination)
        return sent

    def _fail(self, delivery: Delivery, error: RefusedError) -> None:
        settings = self.config.sender
        dead = delivery.attempts >= settings.attempts
        wait = min(settings.backoff_max_s, settings.backoff_s * 2.0 ** min(delivery.attempts - 1, 40))
        again = None if error.final or dead else wait
        self.queue.fail_delivery(delivery, str(error), retry_in_s=again, dead=dead and not error.final)
        LOGGER.warning("job %s: not taken by %s: %s", delivery.job_id, delivery.destination, error)

    @contextmanager
    def _connected(self, due: Sequence[Delivery]) -> Iterator[tuple[Send, Notify]]:
        destination = self.destination
        if isinstance(destination, WebDestination):
            yield lambda path: store_web(destination, path, self.config.sender.timeout_s), lambda sent: None
            return
        classes: list[Any] = sorted({delivery.sop_class for delivery in due})
        if destination.availability:
            classes.append(InstanceAvailabilityNotification)
        association = self._associate(destination, classes)
        if association is None:
            where = f"{destination.host}:{destination.port}"
            raise RefusedError(f"{destination.name}: no association with {destination.ae_title} at {where}")
        try:
            yield lambda path: store_dicom(association, path), lambda sent: self._notify(destination, association, sent)
        finally:
            association.release()

    def _notify(self, destination: DicomDestination, association: Any, sent: Sequence[Delivery]) -> None:
        """Tell of what is available now, where the peer listens to that; a refusal spoils nothing."""
        if InstanceAvailabilityNotification not in [c.abstract_syntax for c in association.accepted_contexts]:
            return
        for job_id in sorted({delivery.job_id for delivery in sent}):
            paths = [self.spool.root / delivery.path for delivery in sent if delivery.job_id == job_id]
            for told in availability(paths, destination.ae_title):
                try:
                    association.send_n_create(told, InstanceAvailabilityNotification, generate_uid())
                except (ValueError, RuntimeError) as error:
                    LOGGER.warning("%s: availability was not told (%s)", destination.name, type(error).__name__)

    def _associate(self, destination: DicomDestination, classes: list[Any]) -> Any:
        settings = self.config
        return associate(destination, settings.listener.ae_title, settings.sender.timeout_s, classes)

    def ask_for_commitment(self) -> int:
        """Ask the peer to commit to what it has taken; return for how many objects it was asked."""
        destination = self.destination
        if not isinstance(destination, DicomDestination) or not destination.commitment:
            return 0
        transaction = generate_uid()
        asked = self.queue.claim_commitments(destination.name, transaction, COMMITMENT_WAIT_S, BATCH)
        if not asked:
            return 0
        association = self._associate(destination, [StorageCommitmentPushModel])
        if association is None:
            LOGGER.warning("%s offers no storage commitment now; asked again later", destination.name)
            return 0
        try:
            request_commitment(association, transaction, asked)
        except (ValueError, RuntimeError, RefusedError) as error:
            LOGGER.warning("%s: storage commitment was not taken (%s)", destination.name, error)
        finally:
            association.release()
        return len(asked)


def store_dicom(association: Any, path: Path) -> None:
    """Send a file by C-STORE.

    Raises
    ------
    RefusedError
        If it was not taken.
    """
    try:
        status = association.send_c_store(path)
    except FileNotFoundError as error:
        raise RefusedError("the file of the result is gone", final=True) from error
    except ValueError as error:
        raise RefusedError("the peer does not take this SOP class", final=False) from error
    except (OSError, RuntimeError) as error:
        raise RefusedError(f"the association broke ({type(error).__name__})") from error
    code = getattr(status, "Status", None)
    if code is None:
        raise RefusedError("the association broke before an answer came")
    if code == 0x0000 or 0xB000 <= code <= 0xBFFF:
        return
    final = any(low <= code <= high for low, high in FOREIGN)
    raise RefusedError(f"{STATUS_TEXT.get(code, 'the peer refused')} (0x{code:04X})", final=final)


def request_commitment(association: Any, transaction: str, deliveries: Sequence[Delivery]) -> None:
    """Ask by N-ACTION for storage commitment (PS3.4 J.3.2); the answer comes to the listener.

    Raises
    ------
    RefusedError
        If the request was refused.
    """
    request = Dataset()
    request.TransactionUID = transaction
    items = []
    for delivery in deliveries:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = delivery.sop_class, delivery.sop_uid
        items.append(item)
    request.ReferencedSOPSequence = items
    status, _ = association.send_n_action(request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    code = getattr(status, "Status", None)
    if code != 0x0000:
        raise RefusedError("no answer" if code is None else f"0x{code:04X}")


def availability(paths: Sequence[Path], retrieve_ae: str) -> list[Dataset]:
    """Return instance availability notifications (PS3.4 R.3.2), one for each study."""
    tags = ["StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"]
    by_study: dict[str, dict[str, list[Dataset]]] = {}
    for path in paths:
        header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        item.InstanceAvailability, item.RetrieveAETitle = "ONLINE", retrieve_ae
        series = by_study.setdefault(str(header.StudyInstanceUID), {})
        series.setdefault(str(header.SeriesInstanceUID), []).append(item)
    told = []
    for study, found in by_study.items():
        notification = Dataset()
        notification.ReferencedPerformedProcedureStepSequence = []
        notification.StudyInstanceUID = study
        notification.ReferencedSeriesSequence = [_series_item(uid, items) for uid, items in found.items()]
        told.append(notification)
    return told


def _series_item(uid: str, items: list[Dataset]) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = uid
    item.ReferencedSOPSequence = items
    return item


def store_web(destination: WebDestination, path: Path, timeout_s: float) -> None:
    """Send a file by STOW-RS (PS3.18 10.5).

    Raises
    ------
    RefusedError
        If it was not taken.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RefusedError("the file of the result is gone", final=True) from error
    boundary = secrets.token_hex(16)
    body = b"\r\n".join(
        (f"--{boundary}".encode(), b"Content-Type: application/dicom", b"", content, f"--{boundary}--".encode(), b"")
    )
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    if destination.token_file:
        try:
            headers["Authorization"] = f"Bearer {Path(destination.token_file).read_text('utf-8').strip()}"
        except OSError as error:
            raise RefusedError(f"{destination.token_file} cannot be read ({error.strerror})") from error
    url = destination.url.rstrip("/") + "/studies"
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        context = client_context(destination.tls or TlsClient()) if url.startswith("https:") else None
        with urllib.request.urlopen(request, timeout=timeout_s, context=context) as answer:
            _check_stored(answer.status, answer.read(1_000_000))
    except urllib.error.HTTPError as error:
        raise RefusedError(f"{destination.name} answered {error.code}", final=error.code in FINAL_HTTP) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise RefusedError(f"{destination.name} cannot be reached ({reason})") from error


def _check_stored(status: int, body: bytes) -> None:
    """Look for failed objects in an answer that is no error as a whole."""
    try:
        told = json.loads(body) if body.strip() else {}
    except ValueError:
        told = {}  # XML, or nothing that says more than the status
    failed = told.get("00081198", {}).get("Value") if isinstance(told, dict) else None
    if failed:
        reason = failed[0].get("00081197", {}).get("Value", [0])[0]
        raise RefusedError(f"the peer refused (0x{int(reason):04X})")
    if status == 202:
        raise RefusedError("the peer took a part only (202)")

"""An archive that is searched by QIDO-RS and read by WADO-RS (PS3.18). Instances are taken byte by byte as they are."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from datetime import date
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from hemolens.errors import ConfigError
from hemolens.pacs.config import WebDestination
from hemolens.pacs.pull import FoundSeries, Keeper, PullError
from hemolens.pacs.security import TlsClient, client_context, read_secret

DICOM_JSON = "application/dicom+json"
AS_IT_IS = 'multipart/related; type="application/dicom"; transfer-syntax=*'
STUDY_UID, SERIES_UID, SOP_UID, MODALITY = "0020000D", "0020000E", "00080018", "00080060"
NUMBER_OF_INSTANCES = "00201209"
PAGE = 500
LARGEST_JSON = 64 * 1024**2
LARGEST_INSTANCE = 2 * 1024**3


class WebArchive:
    """A DICOMweb service.

    Parameters
    ----------
    peer
        Whom to ask.
    timeout_s
        Of each answer.
    """

    def __init__(self, peer: WebDestination, timeout_s: float) -> None:
        parts = urlsplit(peer.url)
        if not parts.hostname:
            raise ConfigError(f"{peer.name}: url names no host.")
        self._name, self._base = peer.name, parts.path.rstrip("/")
        self._headers = {"User-Agent": "hemolens"}
        if peer.token_file:
            self._headers["Authorization"] = f"Bearer {read_secret(peer.token_file).decode()}"
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = client_context(peer.tls or TlsClient())
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout_s, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def series_of(self, day: date) -> Iterator[FoundSeries]:
        """Yield the CT series of the studies of a day."""
        asked = {"StudyDate": day.strftime("%Y%m%d"), "ModalitiesInStudy": "CT"}
        for study in self._search("/studies", asked):
            uid = _first(study, STUDY_UID)
            for found in self._search(f"/studies/{quote(uid)}/series", {"Modality": "CT"}) if uid else ():
                count, series = _first(found, NUMBER_OF_INSTANCES), _first(found, SERIES_UID)
                if series and (_first(found, MODALITY) or "CT") == "CT":
                    yield FoundSeries(uid, series, int(count) if count else None)

    def fetch(self, found: FoundSeries, keeper: Keeper) -> None:
        """Fetch the instances of a series that are not kept yet.

        Raises
        ------
        PullError
            If not all of them came.
        """
        place = f"/studies/{quote(found.study_uid)}/series/{quote(found.series_uid)}/instances"
        told = [_first(instance, SOP_UID) for instance in self._search(place, {})]
        if found.instances is not None and len(told) < found.instances:
            raise PullError(f"{self._name}: names {len(told)} of {found.instances} images. Try again.")
        for uid in told:
            if uid and not keeper.has(uid):
                kind, body = self._get(f"{place}/{quote(uid)}", AS_IT_IS, LARGEST_INSTANCE)
                for part in parts_of(kind, body):
                    keeper.take_file(part)

    def _search(self, path: str, asked: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the answers of a search, page by page; an archive that knows no pages answers all at once."""
        offset, seen = 0, set()
        while True:
            query = urlencode({**asked, "limit": PAGE, "offset": offset})
            _, body = self._get(f"{path}?{query}", DICOM_JSON, LARGEST_JSON)
            try:
                answers = json.loads(body) if body.strip() else []
            except ValueError as error:
                raise PullError(f"{self._name}: answers a search with no JSON. Check its url.") from error
            new = [a for a in answers if isinstance(a, dict) and json.dumps(a, sort_keys=True) not in seen]
            seen |= {json.dumps(a, sort_keys=True) for a in new}
            yield from new
            if len(answers) < PAGE or not new:
                return
            offset += len(answers)

    def _get(self, path: str, accept: str, largest: int) -> tuple[str, bytes]:
        for retry in (True, False):
            try:
                self._connection.request("GET", self._base + path, headers={**self._headers, "Accept": accept})
                answer = self._connection.getresponse()
                body = answer.read(largest + 1)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                self._connection.close()  # it was kept open too long: one more try on a new one
                if not retry:
                    raise PullError(f"{self._name}: the connection broke. Try again.") from error
                continue
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                raise PullError(f"{self._name}: cannot be reached ({type(error).__name__}). Check its url.") from error
            if answer.status == http.HTTPStatus.NO_CONTENT:
                return "", b""
            if answer.status != http.HTTPStatus.OK or len(body) > largest:
                self._connection.close()
                told = f"answered {answer.status}" if answer.status != http.HTTPStatus.OK else "sends too much"
                raise PullError(f"{self._name}: {told}. Check its url, and the token if it asks for one.")
            return answer.getheader("Content-Type", ""), body
        raise PullError(f"{self._name}: the connection broke. Try again.")


def parts_of(kind: str, body: bytes) -> Iterator[bytes]:
    """Yield the parts of a multipart/related body (RFC 2387); the body itself where it is no multipart.

    Parameters
    ----------
    kind
        Content-Type of the answer.
    body
        The answer.

    Raises
    ------
    PullError
        If it is cut off.
    """
    if not kind.lower().startswith("multipart/"):
        yield body
        return
    found = re.search(r'boundary="?([^";]+)"?', kind, re.IGNORECASE)
    if found is None:
        raise PullError("the archive sends parts without saying what parts them. Ask its keeper.")
    mark = b"\r\n--" + found[1].encode()
    chunks = (b"\r\n" + body).split(mark)
    if not chunks[-1].startswith(b"--"):
        raise PullError("the archive's answer is cut off. Try again.")
    for chunk in chunks[1:-1]:
        _, _, content = chunk.partition(b"\r\n\r\n")
        yield content


def _first(answer: dict[str, Any], tag: str) -> str:
    values = (answer.get(tag) or {}).get("Value") or [""]
    return str(values[0])

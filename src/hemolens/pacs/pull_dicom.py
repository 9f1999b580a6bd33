"""An archive that is searched by C-FIND and emptied by C-GET or C-MOVE (PS3.4 Annex C)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any, Literal

from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from hemolens.errors import HemolensError
from hemolens.pacs.config import DicomDestination, PacsConfig
from hemolens.pacs.guard import no_delay
from hemolens.pacs.incoming import CT_CLASSES
from hemolens.pacs.listener import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS, TAKEN
from hemolens.pacs.pull import FoundSeries, Keeper, PullError
from hemolens.pacs.security import client_context
from hemolens.pacs.spool import FullError

PENDING = frozenset({0xFF00, 0xFF01})


class DicomArchive:
    """A peer that answers C-FIND.

    Parameters
    ----------
    config
        Of the service.
    peer
        Whom to ask.
    method
        ``get`` fetches over the same association; ``move`` has the peer send to the listener, which must run and be
        known to the peer by its AE title.
    """

    def __init__(self, config: PacsConfig, peer: DicomDestination, method: Literal["get", "move"]) -> None:
        self._config, self._peer, self._method = config, peer, method

    def close(self) -> None:
        """Hang up: associations last no longer than a question."""

    def series_of(self, day: date) -> Iterator[FoundSeries]:
        """Yield the CT series of the studies of a day."""
        association = self._associate([build_context(StudyRootQueryRetrieveInformationModelFind)])
        try:
            query = Dataset()
            query.QueryRetrieveLevel, query.StudyDate = "STUDY", day.strftime("%Y%m%d")
            query.ModalitiesInStudy, query.StudyInstanceUID = "CT", None
            for study in list(self._find(association, query)):
                if "CT" in _values(study.get("ModalitiesInStudy", "CT")):
                    yield from self._series_in(association, str(study.StudyInstanceUID))
        finally:
            association.release()

    def _series_in(self, association: Any, study_uid: str) -> Iterator[FoundSeries]:
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID, query.Modality = "SERIES", study_uid, "CT"
        query.SeriesInstanceUID = query.NumberOfSeriesRelatedInstances = None
        for found in list(self._find(association, query)):
            if str(found.get("Modality", "CT")) == "CT" and found.get("SeriesInstanceUID"):
                count = found.get("NumberOfSeriesRelatedInstances")
                yield FoundSeries(study_uid, str(found.SeriesInstanceUID), int(count) if count else None)

    def _find(self, association: Any, query: Dataset) -> Iterator[Dataset]:
        try:
            for status, answer in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
                if not status:
                    raise PullError(f"{self._peer.name}: the connection broke during a search. Try again.")
                if status.Status in PENDING and answer is not None:
                    yield answer
                elif status.Status != SUCCESS:
                    raise PullError(f"{self._peer.name}: refuses to search (0x{status.Status:04X}). Ask its keeper.")
        except (ValueError, RuntimeError) as error:
            raise PullError(f"{self._peer.name}: takes no searches (C-FIND, study root). Ask its keeper.") from error

    def fetch(self, found: FoundSeries, keeper: Keeper) -> None:
        """Fetch one series.

        Raises
        ------
        PullError
            If not all of it came.
        """
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "SERIES"
        wanted.StudyInstanceUID, wanted.SeriesInstanceUID = found.study_uid, found.series_uid
        if self._method == "move":
            self._move(wanted)
        else:
            self._get(wanted, keeper)

    def _get(self, wanted: Dataset, keeper: Keeper) -> None:
        model = StudyRootQueryRetrieveInformationModelGet
        syntaxes = list(TAKEN)
        # One context for each syntax: the peer sends what it holds as it is and need not decompress.
        few = syntaxes[: (128 - 1) // len(CT_CLASSES)]
        contexts = [build_context(model), *(build_context(uid, s) for uid in sorted(CT_CLASSES) for s in few)]
        roles = [build_role(uid, scp_role=True) for uid in sorted(CT_CLASSES)]
        association = self._associate(contexts, roles, [(evt.EVT_C_STORE, _store, [keeper])])
        try:
            self._follow(association.send_c_get(wanted, model))
        except (ValueError, RuntimeError) as error:
            raise PullError(f"{self._peer.name}: takes no C-GET. Try --method move.") from error
        finally:
            association.release()

    def _move(self, wanted: Dataset) -> None:
        model = StudyRootQueryRetrieveInformationModelMove
        association = self._associate([build_context(model)])
        try:
            self._follow(association.send_c_move(wanted, self._config.listener.ae_title, model))
        except (ValueError, RuntimeError) as error:
            raise PullError(f"{self._peer.name}: takes no C-MOVE. Try --method get.") from error
        finally:
            association.release()

    def _follow(self, answers: Iterator[tuple[Dataset, Dataset | None]]) -> None:
        last = Dataset()
        for status, _ in answers:
            last = status
        if "Status" not in last:
            raise PullError(f"{self._peer.name}: the connection broke while images came. Try again.")
        missing = int(last.get("NumberOfFailedSuboperations") or 0)
        if last.Status != SUCCESS or missing:
            told = f"{missing} images did not come" if missing else "nothing came"
            raise PullError(f"{self._peer.name}: {told} (0x{last.Status:04X}). Try again, or ask its keeper.")

    def _associate(self, contexts: list[Any], roles: list[Any] | None = None, handlers: list[Any] | None = None) -> Any:
        peer, timeout = self._peer, self._config.sender.timeout_s
        entity = AE(ae_title=peer.calling_ae_title or self._config.listener.ae_title)
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout
        association = entity.associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.ae_title,
            ext_neg=roles,
            tls_args=(client_context(peer.tls), peer.tls.server_name or peer.host) if peer.tls else None,
            evt_handlers=[(evt.EVT_CONN_OPEN, no_delay), *(handlers or [])],
        )
        if not association.is_established:
            raise PullError(
                f"{peer.name}: {peer.host}:{peer.port} cannot be reached or turns this caller away. Check that it runs "
                "and knows the AE title of hemolens."
            )
        return association


def _store(event: evt.Event, keeper: Keeper) -> int:
    """Keep what a C-GET brings."""
    try:
        data = event.encoded_dataset(include_meta=False)
        keeper.take(event.encoded_dataset(include_meta=True), data, str(event.context.transfer_syntax))
    except FullError:
        return OUT_OF_RESOURCES
    except HemolensError:
        return CANNOT_UNDERSTAND
    return SUCCESS


def _values(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value or ["CT"]]

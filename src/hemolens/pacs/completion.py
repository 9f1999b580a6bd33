"""When a series is complete: by its age, by what the archive says it holds, or because somebody tells."""

from __future__ import annotations

import logging
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from hemolens.pacs.config import DicomDestination, PacsConfig
from hemolens.pacs.guard import no_delay
from hemolens.pacs.queue import InstanceKind, Job, Queue, Series, SeriesState
from hemolens.pacs.security import client_context
from hemolens.pacs.spool import short_hash

LOGGER = logging.getLogger("hemolens.pacs.completion")
ASK_AGAIN_S = 10.0
"""A query that found a series still growing is repeated after this."""
PENDING = (0xFF00, 0xFF01)


def model_key(config: PacsConfig) -> str:
    """Return the name that stands for the model in the queue: another model makes another job.

    Raises
    ------
    ModelError
        If the model cannot be loaded.
    """
    from hemolens.inference.registry import load_model

    model = load_model(config.worker.model or None)
    return f"{model.name}-{model.sha256[:12]}"


class Completion:
    """Looks at the series that are being received.

    Parameters
    ----------
    config
        The settings.
    queue
        Where series stand.
    model
        From `model_key`.
    """

    def __init__(self, config: PacsConfig, queue: Queue, model: str) -> None:
        self._config, self._queue, self._model = config, queue, model
        self._asked: dict[str, float] = {}

    def look(self) -> int:
        """Complete what can be completed; return how many."""
        receiving = self._queue.receiving()
        now = self._queue.now()
        self._asked = {uid: at for uid, at in self._asked.items() if uid in {s.series_uid for s in receiving}}
        return sum(self._is_due(series, now) and self._take(series) is not None for series in receiving)

    def tell_complete(self, series_uid: str) -> Job | None:
        """Take a series as complete because somebody who knows says so; the job, or None if there is nothing new."""
        series = self._queue.series(series_uid)
        if series is None or series.state is not SeriesState.RECEIVING:
            return None
        return self._take(series)

    def _is_due(self, series: Series, now: float) -> bool:
        settings, age = self._config.completion, now - series.received_last
        expected = series.expected
        if settings.query and age >= min(1.0, settings.stable_age_s):
            expected = self._ask(series, now)
        if expected is None:
            return age >= settings.stable_age_s
        return series.instances >= expected or age >= settings.wait_s

    def _ask(self, series: Series, now: float) -> int | None:
        """Ask the archive how many instances there are, now and then; None if it does not say."""
        if now - self._asked.get(series.series_uid, 0.0) < ASK_AGAIN_S:
            return series.expected
        self._asked[series.series_uid] = now
        peer = self._config.destination(self._config.completion.query)
        if not isinstance(peer, DicomDestination):
            return series.expected
        told = count_instances(peer, self._config.listener.ae_title, series, self._config.sender.timeout_s)
        if told is not None and told != series.expected:
            self._queue.expect(series.series_uid, told)
        return told if told is not None else series.expected

    def _take(self, series: Series) -> Job | None:
        reason = self._why_not(series)
        if reason:
            self._queue.ignore(series.series_uid, reason)
            LOGGER.info("series %s ignored: %s", short_hash(series.series_uid), reason)
            return None
        job = self._queue.complete(series.series_uid, series.instances, self._model)
        if job is not None:
            LOGGER.info("series %s complete: job %s", short_hash(series.series_uid), job.id)
        return job

    def _why_not(self, series: Series) -> str:
        kinds = {instance.kind for instance in self._queue.instances(series.series_uid)}
        if InstanceKind.CT in kinds:
            return ""
        if InstanceKind.LOCALIZER in kinds:
            return "localizers only"
        return f"no CT images (modality {series.modality or 'unknown'})"


def count_instances(peer: DicomDestination, calling: str, series: Series, timeout_s: float) -> int | None:
    """Ask an archive by C-FIND how many instances a series has; None if it does not say.

    Parameters
    ----------
    peer
        The archive.
    calling
        AE title of this end.
    series
        Which series.
    timeout_s
        Of the connection and the answer.
    """
    from pydicom.dataset import Dataset

    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID, query.SeriesInstanceUID = series.study_uid, series.series_uid
    query.NumberOfSeriesRelatedInstances = None
    association = associate(peer, calling, timeout_s, [StudyRootQueryRetrieveInformationModelFind])
    if association is None:
        return None
    told = None
    try:
        for status, answer in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
            if status and status.Status in PENDING and answer is not None:
                number = answer.get("NumberOfSeriesRelatedInstances")
                told = int(number) if number is not None else told
    except (ValueError, RuntimeError) as error:  # the peer hung up, or takes no queries
        LOGGER.warning("query of %s failed (%s)", peer.name, type(error).__name__)
    finally:
        association.release()
    return told


def associate(peer: DicomDestination, calling: str, timeout_s: float, classes: list[Any]) -> Any:
    """Open an association to a peer; None if it cannot be had.

    Parameters
    ----------
    peer
        Whom to call.
    calling
        AE title of this end, unless the peer's settings name another.
    timeout_s
        Of the connection and of each answer.
    classes
        SOP classes to propose.
    """
    entity = AE(ae_title=peer.calling_ae_title or calling)
    entity.connection_timeout = entity.acse_timeout = timeout_s
    entity.dimse_timeout = entity.network_timeout = timeout_s
    for sop_class in classes:
        entity.add_requested_context(sop_class)
    tls = (client_context(peer.tls), peer.tls.server_name or peer.host) if peer.tls else None
    association = entity.associate(
        peer.host,
        peer.port,
        ae_title=peer.ae_title,
        tls_args=tls,
        evt_handlers=[(evt.EVT_CONN_OPEN, no_delay)],
    )
    return association if association.is_established else None

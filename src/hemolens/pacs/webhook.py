"""A signed call to another system when a scan is positive. It waits in the queue of deliveries until it was answered.

The body is JSON without identifiers of the patient but the study's UID. Three headers come with it::

    Hemolens-Delivery: <id>                 the same for every try: whoever has seen it may ignore the call
    Hemolens-Timestamp: <seconds since 1970>
    Hemolens-Signature: sha256=<hex>        HMAC-SHA256 of "<timestamp>.<body>" with the shared secret

The time is part of what is signed, so that a call that was overheard cannot be played back later.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from hemolens import __version__
from hemolens.errors import ConfigError, HemolensError
from hemolens.measurements.findings import NOTICE
from hemolens.pacs.config import PacsConfig, WebhookConfig
from hemolens.pacs.queue import Delivery, Job, Letter, Queue, open_queue
from hemolens.pacs.security import read_secret

DESTINATION = "@webhook"
"""Where the calls stand among the deliveries; no destination can be called so."""
TOLERANCE_S = 300.0
"""A receiver should refuse a timestamp that is off by more."""
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 900.0
FINAL = frozenset({400, 401, 403, 404, 405, 410, 413, 415, 422})
"""Answers that another try would not change; somebody has to look."""
LOOK_S = 1.0
LEASE_MARGIN_S = 30.0

log = logging.getLogger(__name__)


class WebhookError(HemolensError):
    """A call was not taken.

    Parameters
    ----------
    message
        One line, without the body.
    final
        Whether another try is of no use.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        self.final = final
        super().__init__(message)


def letter(job_id: str, findings_path: str) -> Letter:
    """Return the call on a positive, for `Queue.finish_job`.

    Parameters
    ----------
    job_id
        The analysis: each makes one call.
    findings_path
        Of its ``findings.json``, relative to the spool.
    """
    return Letter(destination=DESTINATION, sop_uid=f"webhook-{job_id}", sop_class="", path=findings_path)


def payload(job: Job) -> dict[str, Any]:
    """Return what is told of a positive."""
    return {
        "event": "positive",
        "job": job.id,
        "study_uid": job.study_uid,
        "series_uid": job.series_uid,
        "decision": job.decision,
        "probability": job.probability,
        "volume_ml": job.volume_ml,
        "partial": job.partial,
        "received": job.received_last,
        "finished": job.finished,
        "hemolens_version": __version__,
        "notice": NOTICE,
    }


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """Return the signature of a call."""
    return "sha256=" + hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def verify(secret: bytes, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether a call came from who holds the secret, and lately; what a receiver has to do.

    Parameters
    ----------
    headers
        With ``Hemolens-Timestamp`` and ``Hemolens-Signature``.
    body
        As received, before it is parsed.
    now
        Seconds since 1970.
    """
    told = {name.lower(): value for name, value in headers.items()}
    stamp = told.get("hemolens-timestamp", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 20) or abs(now - int(stamp)) > TOLERANCE_S:
        return False
    given = told.get("hemolens-signature", "").encode("utf-8", "surrogateescape")
    return hmac.compare_digest(signature(secret, int(stamp), body).encode(), given)


def wait_s(attempts: int) -> float:
    """Return how long to wait after so many tries: doubled with each, at most a quarter of an hour."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempts - 1, 30))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A signed call goes where it was configured to go and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""
        return


def post(config: WebhookConfig, secret: bytes, delivery_id: str, told: Mapping[str, Any], now: float) -> None:
    """Make one call.

    Raises
    ------
    WebhookError
        If it was not answered with 2xx.
    """
    body = json.dumps(told, sort_keys=True, allow_nan=False).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"hemolens/{__version__}",
        "Hemolens-Delivery": delivery_id,
        "Hemolens-Timestamp": str(int(now)),
        "Hemolens-Signature": signature(secret, int(now), body),
    }
    request = urllib.request.Request(config.url, data=body, headers=headers, method="POST")
    tls = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    # Proxies of the environment are left aside: what is configured is where it goes.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect, tls)
    try:
        with opener.open(request, timeout=config.timeout_s) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        error.close()
        final = error.code in FINAL or 300 <= error.code < 400
        raise WebhookError(f"webhook: the receiver answered {error.code}", final=final) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise WebhookError(f"webhook: cannot be reached ({type(reason).__name__})") from error


def deliver_due(queue: Queue, config: WebhookConfig, secret: bytes) -> int:
    """Make the calls that are due, each with the rules for its failure; return how many were taken."""
    taken = 0
    for delivery in queue.claim_deliveries(DESTINATION, config.timeout_s + LEASE_MARGIN_S, 1):
        job = queue.job(delivery.job_id)
        if job is None:
            queue.fail_delivery(delivery, "webhook: its analysis is gone", retry_in_s=None)
            continue
        try:
            post(config, secret, delivery.id, payload(job), queue.now())
        except WebhookError as error:
            _failed(queue, delivery, error, config)
        else:
            taken += queue.finish_delivery(delivery)
    return taken


def _failed(queue: Queue, delivery: Delivery, error: WebhookError, config: WebhookConfig) -> None:
    tries = delivery.attempts
    log.warning("webhook not taken: job %s, try %d: %s", delivery.job_id, tries, error)
    if error.final:
        queue.fail_delivery(delivery, str(error), retry_in_s=None)
    elif tries >= config.attempts:
        queue.fail_delivery(delivery, str(error), retry_in_s=None, dead=True)
    else:
        queue.fail_delivery(delivery, str(error), retry_in_s=wait_s(tries))


def run_webhook(config: PacsConfig, stop: threading.Event) -> None:
    """Make calls until told to stop.

    Raises
    ------
    ConfigError
        If no call is configured or the secret cannot be read.
    """
    if not config.webhook.url:
        raise ConfigError("webhook.url: empty. Set it, or do not start the webhook.")
    secret = read_secret(config.webhook.secret_file)
    queue = open_queue(config.queue_url)
    try:
        while not stop.is_set():
            if not deliver_due(queue, config.webhook, secret):
                stop.wait(LOOK_S)
    finally:
        queue.close()

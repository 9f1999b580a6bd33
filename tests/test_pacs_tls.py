"""TLS with client certificates between `hemolens pacs serve` and a real Orthanc, both ways; the webhook hears of it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

import http_peers
from hemolens.pacs.webhook import verify
from pacs_peers import Service, destination, free_port, orthanc, send, small_head, storescu, wait_for

SECRET = b"0123456789abcdef" * 4


def papers(folder: Path, *names: str) -> dict[str, str]:
    """An authority, and a certificate and key for each name."""
    folder.mkdir()
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    told = {"ca": str(folder / "ca.pem")}
    for name in names:
        leaf = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        (folder / f"{name}.key").chmod(0o600)
        told |= {name: str(folder / f"{name}.pem"), f"{name}_key": str(folder / f"{name}.key")}
    return told


@contextmanager
def receiver(failures: int) -> Iterator[tuple[int, list[tuple[dict[str, str], bytes]]]]:
    """A real HTTP server that fails a few times before it takes calls."""
    calls: list[tuple[dict[str, str], bytes]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            calls.append((dict(self.headers.items()), body))
            self.send_response(503 if len(calls) <= failures else 204)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with http_peers.serving(Hook) as port:
        yield port, calls


def echo(port: int, ca: str, certificate: tuple[str, str] | None) -> bool:
    context = ssl.create_default_context(cafile=ca)
    if certificate:
        context.load_cert_chain(*certificate)
    entity = AE(ae_title="ANY")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title="HEMOLENS", tls_args=(context, "127.0.0.1"))
    if not association.is_established:
        return False
    told = association.send_c_echo()
    association.release()
    return getattr(told, "Status", None) == 0


@pytest.mark.slow
def test_orthanc_and_hemolens_talk_tls_both_ways_and_the_webhook_is_called(tmp_path: Path) -> None:
    own = papers(tmp_path / "own", "orthanc", "hemolens")
    stranger = papers(tmp_path / "stranger", "x")
    port = free_port()
    peer = {"AET": "HEMOLENS", "Host": "127.0.0.1", "Port": port, "UseDicomTls": True}
    tls = {
        "DicomTlsEnabled": True, "DicomTlsCertificate": own["orthanc"], "DicomTlsPrivateKey": own["orthanc_key"],
        "DicomTlsTrustedCertificates": own["ca"], "DicomTlsRemoteCertificateRequired": True,
    }  # fmt: skip
    with orthanc(tmp_path / "o", modalities={"hemolens": peer}, **tls) as server, receiver(1) as (hook, calls):
        (tmp_path / "secret").write_bytes(SECRET)
        (tmp_path / "secret").chmod(0o600)
        settings = (
            "[completion]\nstable_age_s = 1.5\ninterval_s = 0.2\n[sender]\ninterval_s = 0.2\nbackoff_s = 0.5\n"
            f'[listener.tls]\ncertificate = "{own["hemolens"]}"\nkey = "{own["hemolens_key"]}"\n'
            f'client_ca = "{own["ca"]}"\n'
            f'[webhook]\nurl = "http://127.0.0.1:{hook}/bleed"\nsecret_file = "{tmp_path / "secret"}"\n'
            + destination(server)
            + f'[destinations.tls]\nca = "{own["ca"]}"\ncertificate = "{own["hemolens"]}"\n'
            f'key = "{own["hemolens_key"]}"\n'
        )
        running = Service(tmp_path / "service", settings, port=port)
        try:
            running.start()
            files = small_head(tmp_path / "in", 3)
            check_strangers(port, own, stranger, files)
            for file in files:
                server.call("POST", "/instances", file.read_bytes())
            (series,) = server.get("/series")
            server.call("POST", "/modalities/hemolens/store", series.encode())
            wait_for(lambda: running.settled(1) and server.count("SR") == 1, "the result in Orthanc")
            assert server.count("SEG") == 1
            (report,) = server.objects("SR")
            assert report.StudyInstanceUID == dcmread(files[0]).StudyInstanceUID
            wait_for(lambda: len(calls) == 2, "the second call of the webhook")
            check_call(calls)
            assert len(calls) == 2, "what was taken is not told again"
        finally:
            running.stop()


def check_strangers(port: int, own: dict[str, str], stranger: dict[str, str], files: list[Path]) -> None:
    """Only who shows a certificate of the authority comes in."""
    assert echo(port, own["ca"], (own["orthanc"], own["orthanc_key"]))
    assert not echo(port, own["ca"], (stranger["x"], stranger["x_key"]))
    assert not echo(port, own["ca"], None)
    assert send(files[:1], port) == [None]
    assert storescu(files[:1], port).returncode != 0
    good = ("+tls", own["orthanc_key"], own["orthanc"], "+cf", own["ca"])
    assert storescu(files[:1], port, *good).returncode == 0, "dcmtk comes in with a certificate"


def check_call(calls: list[tuple[dict[str, str], bytes]]) -> None:
    """Signed, the same delivery both times, and without the patient."""
    ids = set()
    for headers, body in calls:
        assert verify(SECRET, headers, body, float(headers["Hemolens-Timestamp"]))
        assert not verify(b"another secret", headers, body, float(headers["Hemolens-Timestamp"]))
        ids.add(headers["Hemolens-Delivery"])
        told = json.loads(body)
        assert told["study_uid"] == "2.25.77.3"
        for secret in (b"ID-3", b"Doe"):
            assert secret not in body
    assert len(ids) == 1

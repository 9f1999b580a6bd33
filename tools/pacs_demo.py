"""`make pacs-demo`: a small hospital on this computer. Research use only. Not a medical device.

Orthanc (the archive) routes every CT series to hemolens; hemolens sends segmentation and report back into the same
study; OHIF (the viewer) shows them over the images. The demo scan is sent, and the link to look at it is printed.
Everything listens on 127.0.0.1 alone and ends with Ctrl-C.

Needs Orthanc with DICOMweb and npm: apt-get install orthanc orthanc-dicomweb npm. OHIF comes once from npm's registry.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OHIF = "@ohif/app"
OHIF_VERSION = "3.12.10"
OHIF_SHA512 = "0kuF66Mq9c9dMD++bUsTjMrJpXJwaZhz9B4uS244DawAjSkTwIYFU93pxPuRUQixaRi7QAHlF3Fe1qudBlZrmA=="
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ROUTE = """
function OnStableSeries(id, tags, metadata)
  if tags['Modality'] == 'CT' then
    RestApiPost('/modalities/hemolens/store', id)
  end
end
"""
VIEWER = {
    "routerBasename": "/",
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "maxNumberOfWebWorkers": 2,
    "showWarningMessageForCrossOrigin": False,
    "showCPUFallbackMessage": False,
    "showLoadingIndicator": True,
    "strictZSpacingForVolumeViewport": True,
    "disableConfirmationPrompts": True,
    "customizationService": [{"ohif.tours": {"$set": []}}],
    "investigationalUseDialog": {"option": "always"},
    "defaultDataSourceName": "orthanc",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "orthanc",
            "configuration": {
                "friendlyName": "Orthanc of the demo",
                "name": "orthanc",
                "wadoUriRoot": "/dicom-web",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "qidoSupportsIncludeField": False,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "omitQuotationForMultipartRequest": True,
                "singlepart": "bulkdata",
                "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
            },
        }
    ],
}
REPORTS = """
// OHIF 3.12 stops reading a report at a measurement group without coordinates, and shows nothing of it. The group
// of the scan as a whole has none: give it to the images, so that the lesions are shown and can be stepped through.
window.config.customizationService.push({ onBeforeSRAddMeasurement: { $set: ({ measurement }) => {
  if (!measurement.coords?.length) {
    const sets = window.services?.displaySetService.getActiveDisplaySets() ?? [];
    measurement.coords = [{}];
    measurement.displaySetInstanceUID = sets.find(set => set.Modality === 'CT')?.displaySetInstanceUID;
  }
  return measurement;
} } });
"""
WAIT_S = 300.0


class DemoError(Exception):
    """Something that the demo needs is missing or does not work; one line that says what to do."""


@dataclass(frozen=True)
class Shown:
    """What there is to look at."""

    link: str
    study_uid: str
    seg_series_uid: str
    sr_series_uid: str
    orthanc: str
    worklist: str
    seconds: float
    """From the last image to the result in Orthanc."""


def main() -> int:
    """Run the demo until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".pacs-demo"), help="where OHIF and all data lie")
    parser.add_argument("--port", type=int, default=3000, help="of the viewer; the next free one if it is taken")
    parser.add_argument("--once", action="store_true", help="end when the result is there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        with demo(options.folder, options.port, say=print) as shown:
            print(f"\nThe result was in Orthanc {shown.seconds:.0f} s after the last image.")
            print("Research use only. Not a medical device.\n")
            print(f"  Images with the segmentation: {shown.link}")
            print(f"  Worklist:                     {shown.worklist}")
            print(f"  Orthanc:                      {shown.orthanc}\n", flush=True)
            if not options.once:
                print("Ctrl-C ends it all.", flush=True)
                threading.Event().wait()
    except KeyboardInterrupt:
        print("\nended")
    except DemoError as error:
        print(f"pacs-demo: {error}", file=sys.stderr)
        return 1
    return 0


def _on_terminate(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def demo(folder: Path, port: int = 0, say: Callable[[str], None] = lambda text: None) -> Iterator[Shown]:
    """Start everything, send the demo scan, and yield when its result has come; end everything afterwards.

    Parameters
    ----------
    folder
        Where OHIF is kept from run to run; the data of an earlier run are removed.
    port
        Of the viewer; 0 for any.
    say
        Told what happens.
    """
    _check_tools()
    say("Getting the viewer ...")
    viewer = get_ohif(folder)
    run = folder.absolute() / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    ports = {name: free_port() for name in ("http", "dicom", "hemolens", "worklist")}
    ports["viewer"] = free_port(port)
    with ExitStack() as stack:
        say("Starting Orthanc, hemolens and the viewer ...")
        stack.enter_context(running(["Orthanc", str(orthanc_settings(run, ports))], run / "orthanc.log"))
        command = [sys.executable, "-m", "hemolens", "pacs", "serve", "--config", str(hemolens_settings(run, ports))]
        stack.enter_context(running(command, run / "hemolens.log"))
        stack.enter_context(serving(viewer, ports))
        wait_for(lambda: _get(ports["http"], "/system"), "Orthanc", run)
        wait_for(lambda: _open(ports["hemolens"]), "hemolens", run)
        say("Sending the demo scan to Orthanc ...")
        study = send_demo(ports["dicom"])
        sent = time.monotonic()
        say("Waiting for the result ...")
        series = wait_for(lambda: _results(ports["http"], study), "the result", run)
        link = f"http://127.0.0.1:{ports['viewer']}/viewer?StudyInstanceUIDs={study}"
        yield Shown(
            link=f"{link}&initialSeriesInstanceUID={series['SEG']}",
            study_uid=study,
            seg_series_uid=series["SEG"],
            sr_series_uid=series["SR"],
            orthanc=f"http://127.0.0.1:{ports['http']}/app/explorer.html",
            worklist=f"http://127.0.0.1:{ports['worklist']}/",
            seconds=time.monotonic() - sent,
        )


def _check_tools() -> None:
    missing = [name for name in ("Orthanc", "npm") if shutil.which(name) is None]
    if missing or not PLUGIN.exists():
        raise DemoError(
            f"{' and '.join(missing) or 'the DICOMweb plugin of Orthanc'} is missing. "
            "Run: apt-get install orthanc orthanc-dicomweb npm"
        )


def get_ohif(folder: Path) -> Path:
    """Return the folder of the built viewer; it is fetched from the npm registry the first time, and checked."""
    target = folder.absolute() / f"ohif-{OHIF_VERSION}"
    if (target / "index.html").is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["npm", "pack", f"{OHIF}@{OHIF_VERSION}", "--silent", "--pack-destination", str(folder)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    package = folder / f"ohif-app-{OHIF_VERSION}.tgz"
    if done.returncode or not package.is_file():
        raise DemoError(f"npm could not fetch {OHIF} {OHIF_VERSION}: {done.stderr.strip().splitlines()[-1:] or '?'}")
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if digest != OHIF_SHA512:
        raise DemoError(f"{package}: is not what {OHIF} {OHIF_VERSION} is known to be. Remove it and try again.")
    part = folder / "ohif.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(package) as archive:
        members = [m for m in archive if m.name.startswith("package/dist/") and not m.name.endswith(".map")]
        archive.extractall(part, members, filter="data")
    (part / "package" / "dist").rename(target)
    shutil.rmtree(part)
    package.unlink()
    return target


def orthanc_settings(run: Path, ports: dict[str, int]) -> Path:
    """Write the settings of Orthanc; return their file."""
    (run / "route.lua").write_text(ROUTE)
    settings = {
        "Name": "hemolens demo", "HttpPort": ports["http"], "DicomPort": ports["dicom"], "DicomAet": "ORTHANC",
        "StorageDirectory": str(run / "orthanc"), "IndexDirectory": str(run / "orthanc"), "StableAge": 1,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "OverwriteInstances": False,
        "DicomModalities": {"hemolens": ["HEMOLENS", "127.0.0.1", ports["hemolens"]]},
        "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True,
        "Plugins": [str(PLUGIN)], "LuaScripts": [str(run / "route.lua")],
        "DicomWeb": {"Enable": True, "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }  # fmt: skip
    (run / "orthanc.json").write_text(json.dumps(settings, indent=2))
    return run / "orthanc.json"


def hemolens_settings(run: Path, ports: dict[str, int]) -> Path:
    """Write the settings of hemolens; return their file."""
    (run / "pacs.toml").write_text(
        f"""[listener]
port = {ports["hemolens"]}
[spool]
path = "spool"
min_free_gb = 0.1
[completion]
stable_age_s = 1.0
[[destinations]]
kind = "dicom"
name = "orthanc"
ae_title = "ORTHANC"
port = {ports["dicom"]}
[api]
port = {ports["worklist"]}
viewer_url = "http://127.0.0.1:{ports["viewer"]}/viewer?StudyInstanceUIDs={{study}}"
"""
    )
    return run / "pacs.toml"


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    """Run a program for the time of the block."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class ViewerHandler(SimpleHTTPRequestHandler):
    """Serves OHIF, its settings, and Orthanc's DICOMweb under the same address, so that nothing is cross-origin."""

    protocol_version = "HTTP/1.1"
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".wasm": "application/wasm", ".js": "text/javascript"}  # noqa: RUF012 - as the base class has it

    def __init__(self, *arguments: Any, orthanc_port: int, **more: Any) -> None:
        self._orthanc_port = orthanc_port
        super().__init__(*arguments, **more)

    def do_GET(self) -> None:
        """Answer a page, a file of the viewer, or what Orthanc answers."""
        path = self.path.split("?")[0]
        if path.startswith("/dicom-web/"):
            self._forward()
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", f"window.config = {json.dumps(VIEWER)};{REPORTS}".encode())
        else:
            if not Path(self.translate_path(path)).is_file():
                self.path = "/index.html"  # the viewer's own addresses, such as /viewer
            super().do_GET()

    def _forward(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._orthanc_port, timeout=120)
        try:
            wanted = {k: v for k, v in self.headers.items() if k.lower() in {"accept", "range", "host"}}
            connection.request("GET", self.path, headers=wanted)
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheader("Content-Type") or "application/octet-stream", answer.read())
        except OSError:
            self._answer(502, "text/plain", b"Orthanc does not answer.")
        finally:
            connection.close()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        """Let the viewer share memory with its workers."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Keep the terminal clear."""


@contextmanager
def serving(viewer: Path, ports: dict[str, int]) -> Iterator[None]:
    """Serve the viewer for the time of the block."""
    handler = partial(ViewerHandler, directory=str(viewer), orthanc_port=ports["http"])
    server = ThreadingHTTPServer(("127.0.0.1", ports["viewer"]), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def send_demo(port: int) -> str:
    """Send the demo scan to Orthanc as a scanner would, by C-STORE; return the UID of the study."""
    from pydicom import dcmread
    from pynetdicom import AE

    from hemolens.demo import demo_source

    datasets = [dcmread(path) for path in sorted(demo_source().iterdir())]
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(datasets[0].SOPClassUID, datasets[0].file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title="ORTHANC")
    if not association.is_established:
        raise DemoError("Orthanc takes no images. Look into orthanc.log.")
    try:
        for dataset in datasets:
            if association.send_c_store(dataset).get("Status") != 0:
                raise DemoError("Orthanc refused an image. Look into orthanc.log.")
    finally:
        association.release()
    return str(datasets[0].StudyInstanceUID)


def wait_for(what: Callable[[], Any], name: str, run: Path) -> Any:
    """Return the first answer of `what` that says something."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.2)
    raise DemoError(f"{name} did not come within {WAIT_S:.0f} s. Look into the logs in {run}.")


def _results(port: int, study: str) -> dict[str, str]:
    """Return the series of the results by modality, once both are there."""
    found = {
        s["MainDicomTags"].get("Modality", ""): s["MainDicomTags"]["SeriesInstanceUID"]
        for s in _get(port, "/series?expand") or []
    }
    return found if {"SEG", "SR"} <= set(found) else {}


def _get(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return json.loads(answer.read()) if answer.status == http.HTTPStatus.OK else None
    except (OSError, ValueError):
        return None
    finally:
        connection.close()


def _open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port(wanted: int = 0) -> int:
    """Return a port that nobody listens on: the wanted one, the next ones, or any."""
    for port in [*range(wanted, wanted + 20), 0] if wanted else [0]:
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(trial.getsockname()[1])
    raise DemoError("no port is free")


if __name__ == "__main__":
    sys.exit(main())

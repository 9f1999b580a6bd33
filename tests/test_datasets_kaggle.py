"""`hemolens data fetch`, against a Kaggle that is not there: a module that behaves as kagglehub does."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

import dataset_files
import http_peers
from hemolens.cli import exits
from hemolens.cli.main import main
from hemolens.errors import ConfigError, DependencyError, HemolensError, InputError, OutputError
from hemolens.sources.datasets import kaggle
from hemolens.sources.datasets.opening import open_datasets


class DataCorruptionError(Exception):
    """As kagglehub names it."""


class UnauthenticatedError(Exception):
    """As kagglehub names it."""


class KaggleApiHTTPError(OSError):
    """As kagglehub names it; requests' errors are OSErrors."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Client Error.\n\nYou don't have permission")
        self.response = SimpleNamespace(status_code=status)


class FakeHub:
    """kagglehub's two calls: an archive that grows in the cache, then the files, then their place."""

    def __init__(self, token: Any = "token") -> None:
        self.token = token
        self.calls: list[tuple[str, bool]] = []
        self.failures: list[Exception] = []
        self.resumed_from: list[int] = []

    def module(self) -> ModuleType:
        hub, config = ModuleType("kagglehub"), ModuleType("kagglehub.config")
        hub.dataset_download = self.dataset_download  # type: ignore[attr-defined]
        hub.competition_download = self.competition_download  # type: ignore[attr-defined]
        config.get_kaggle_credentials = self.credentials  # type: ignore[attr-defined]
        hub.config = config  # type: ignore[attr-defined]
        return hub

    def credentials(self) -> Any:
        if isinstance(self.token, Exception):
            raise self.token
        return self.token

    def dataset_download(self, handle: str, *, force_download: bool = False) -> str:
        return self._download(Path("datasets") / handle / "versions" / "1", handle, force_download)

    def competition_download(self, handle: str, *, force_download: bool = False) -> str:
        return self._download(Path("competitions") / handle, handle, force_download)

    def _download(self, place: Path, handle: str, force: bool) -> str:
        self.calls.append((handle, force))
        target = Path(os.environ["KAGGLEHUB_CACHE"]) / place
        archive = target.with_name(f"{target.name}.archive")
        archive.parent.mkdir(parents=True, exist_ok=True)
        self.resumed_from.append(archive.stat().st_size if archive.exists() else 0)
        with archive.open("ab") as stream:
            stream.write(b"x" * 1000)
        if self.failures:
            raise self.failures.pop(0)
        shutil.rmtree(target, ignore_errors=True)
        (dataset_files.write_rsna if "competitions" in place.parts else dataset_files.write_ct_ich)(target / "inner")
        archive.unlink()
        return str(target)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A Kaggle on which data sets are as small as the tests'."""
    fake = FakeHub()
    module = fake.module()
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    monkeypatch.setitem(sys.modules, "kagglehub.config", module.config)
    small = {
        name: kaggle.Source(s.handle, s.competition, s.page, s.terms, 0, min(s.cases, 3))
        for name, s in kaggle.SOURCES.items()
    }
    monkeypatch.setattr(kaggle, "SOURCES", small)
    return fake


def fetched(*arguments: str) -> int:
    return main(["data", "fetch", *arguments])


@pytest.mark.parametrize(("name", "handle", "cases"), [
    ("ct_ich", "vbookshelf/computed-tomography-ct-images", 3),
    ("rsna", "rsna-intracranial-hemorrhage-detection", 4),
])  # fmt: skip
def test_a_download_lands_in_its_folder_and_opens(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, handle: str, cases: int
) -> None:
    assert fetched(name, "-o", str(tmp_path)) == exits.DONE
    assert hub.calls == [(handle, False)]
    (dataset,) = open_datasets(tmp_path)
    assert (dataset.name, len(dataset.cases)) == (name, cases)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]  # no cache is left
    told = capsys.readouterr()
    assert f"{name}: {cases} scans" in told.out
    assert "kaggle.com" in told.err  # where it is from and on what terms
    assert "KAGGLEHUB_CACHE" not in os.environ


def test_what_is_there_is_checked_and_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    fetched("ct_ich", "-o", str(tmp_path), "-q")
    assert fetched("ct_ich", "-o", str(tmp_path), "-q") == exits.DONE
    assert len(hub.calls) == 1
    assert fetched("ct_ich", "-o", str(tmp_path), "-q", "--force") == exits.DONE
    assert hub.calls[1][1] is True
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct_ich"]


def test_a_broken_download_goes_on(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.failures = [ConnectionError("reset"), DataCorruptionError("md5")]
    assert fetched("ct_ich", "-o", str(tmp_path)) == exits.FAILED
    assert "broke off (ConnectionError). Run the same command again: it goes on" in capsys.readouterr().err
    assert not (tmp_path / "ct_ich").exists()
    assert fetched("ct_ich", "-o", str(tmp_path)) == exits.FAILED
    assert "damaged on the way" in capsys.readouterr().err
    assert fetched("ct_ich", "-o", str(tmp_path)) == exits.DONE
    assert hub.resumed_from == [0, 1000, 2000]


@pytest.mark.parametrize("token", [None, ValueError("Invalid Kaggle credentials file with SECRET")])
def test_without_a_token_the_message_says_how_to_make_one(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], token: Any
) -> None:
    hub.token = token
    assert fetched("ct_ich", "-o", str(tmp_path)) == exits.FAILED
    told = capsys.readouterr().err
    for part in ("Create New Token", "KAGGLE_API_TOKEN", "access_token", "kaggle.json"):
        assert part in told
    assert "SECRET" not in told
    assert hub.calls == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KaggleApiHTTPError(401), "the access token was refused. Make one"),
        (UnauthenticatedError("User is not authenticated"), "the access token was refused. Make one"),
        (KaggleApiHTTPError(403), r"refuses access. Sign in and accept the terms at https://www\.kaggle\.com/comp"),
        (KaggleApiHTTPError(404), "is not on Kaggle any more. Look at"),
    ],
)
def test_what_kaggle_refuses_is_explained(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / kaggle.CACHE))
    hub.failures = [error]
    with pytest.raises(InputError, match=told) as caught:
        kaggle.fetch("rsna", tmp_path, hub.module())
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_what_is_there(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / kaggle.CACHE))
    hub.failures = [OSError(errno.ENOSPC, "No space left on device")]
    with pytest.raises(OutputError, match=r"disk is full\. Make room and run the same command again"):
        kaggle.fetch("ct_ich", tmp_path, hub.module())
    assert list((tmp_path / kaggle.CACHE).rglob("*.archive"))


def test_too_little_room_is_told_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kaggle.SOURCES["ct_ich"]
    monkeypatch.setattr(
        kaggle, "SOURCES", {"ct_ich": kaggle.Source(source.handle, False, source.page, source.terms, 10**6, 3)}
    )
    with pytest.raises(OutputError, match=r"GB are free, about 1000000 GB are needed"):
        kaggle.fetch("ct_ich", tmp_path, hub.module())
    assert hub.calls == []


def test_a_data_set_with_scans_missing_is_not_taken(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / kaggle.CACHE))
    source = kaggle.SOURCES["ct_ich"]
    monkeypatch.setattr(
        kaggle, "SOURCES", {"ct_ich": kaggle.Source(source.handle, False, source.page, source.terms, 0, 82)}
    )
    with pytest.raises(InputError, match=r"is not whole: 3 scans, at least 82 were published. Fetch it again"):
        kaggle.fetch("ct_ich", tmp_path, hub.module())
    assert not (tmp_path / "ct_ich").exists()


def test_a_failed_new_download_keeps_the_old_files(hub: FakeHub, tmp_path: Path) -> None:
    fetched("ct_ich", "-o", str(tmp_path), "-q")
    hub.failures = [ConnectionError("reset")]
    assert fetched("ct_ich", "-o", str(tmp_path), "-q", "--force") == exits.FAILED
    assert open_datasets(tmp_path / "ct_ich")[0].cases


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("instance", r"instance is not on Kaggle: get it from https://instance\.grand-challenge\.org"),
        ("ct_ich_nifti", r"physionet\.org/content/ct-ich/1\.3\.1"),
        ("folder", "'folder' is your own; these can be fetched: ct_ich, rsna, bhsd"),
        ("rnsa", "'rnsa' is not known; these can be fetched"),
    ],
)
def test_what_is_not_on_kaggle_says_where_it_is(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        kaggle.source_of(name)


def test_without_kagglehub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DependencyError, match=r"kagglehub.*hemolens\[data\]"):
        kaggle.load_kagglehub()


def test_the_real_kagglehub_has_what_is_called() -> None:
    """Names and parameters of the installed version; nothing is fetched."""
    import inspect

    hub = pytest.importorskip("kagglehub")
    for call in (hub.dataset_download, hub.competition_download):
        assert {"handle", "force_download"} <= set(inspect.signature(call).parameters)
    from kagglehub.cache import get_cached_archive_path, get_cached_path
    from kagglehub.config import CACHE_FOLDER_ENV_VAR_NAME, get_kaggle_credentials
    from kagglehub.handle import parse_competition_handle, parse_dataset_handle

    assert CACHE_FOLDER_ENV_VAR_NAME == "KAGGLEHUB_CACHE"
    assert callable(get_kaggle_credentials)
    for source in kaggle.SOURCES.values():
        if source.handle:
            handle = (parse_competition_handle if source.competition else parse_dataset_handle)(source.handle)
            assert get_cached_path(handle)
            assert get_cached_archive_path(handle).endswith(".archive")


def test_errors_are_house_errors(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(HemolensError, match="wrote outside"):
        kaggle.fetch("ct_ich", tmp_path, hub.module())


class Kaggle(BaseHTTPRequestHandler):
    """A Kaggle on this machine: one data set, whose archive breaks off once."""

    archive = b""
    broken = False
    ranges: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/DownloadDataset"):
            self.send_response(302)
            self.send_header("Location", "/archive")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answer = b'{"currentVersionNumber": 3}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        cls, told = type(self), self.headers.get("Range")
        cls.ranges.append(told)
        part = cls.archive[int(told[6:-1]) if told else 0 :]
        self.send_response(206 if told else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not cls.broken:
            cls.broken = True
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        else:
            self.wfile.write(part)


FETCH = """
import os, sys
os.environ["TQDM_DISABLE"] = "1"  # as the command itself does, but the next lines import before it runs
import kagglesdk.kaggle_env as sdk
from hemolens.cli.main import main
from hemolens.sources.datasets import kaggle
sdk._env_to_endpoint[sdk.KaggleEnv.LOCAL] = sys.argv[1]
was = kaggle.SOURCES["ct_ich"]
kaggle.SOURCES = {"ct_ich": kaggle.Source(was.handle, False, was.page, was.terms, 0, 3)}
sys.exit(main(["data", "fetch", "ct_ich", "-o", sys.argv[2], "-q"]))
"""


@pytest.mark.slow
def test_the_real_kagglehub_goes_on_with_a_broken_download(tmp_path: Path) -> None:
    """No fake: kagglehub itself, against a server on this machine that breaks off in the middle."""
    pytest.importorskip("kagglehub")
    source = dataset_files.write_ct_ich(tmp_path / "published" / "inner")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(source.rglob("*.*")):
            archive.write(path, path.relative_to(source.parent))
        archive.writestr("inner/large.bin", random.Random(0).randbytes(6 * 2**20))  # kagglehub keeps whole megabytes
    handler = type("Once", (Kaggle,), {"archive": packed.getvalue(), "broken": False, "ranges": []})
    environment = {**os.environ, "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_API_TOKEN": "no-real-token"}
    with http_peers.serving(handler) as port:
        command = [sys.executable, "-c", FETCH, f"http://127.0.0.1:{port}", str(tmp_path / "data")]
        first, second = (
            subprocess.run(command, env=environment, capture_output=True, text=True, check=False) for _ in range(2)
        )
    assert first.returncode == exits.FAILED
    assert first.stderr.count("\n") == 1
    assert "Run the same command again: it goes on where it broke off." in first.stderr
    assert (second.returncode, second.stdout, second.stderr) == (exits.DONE, "", "")
    assert handler.ranges[:2] == [None, None]  # the second time it looks at the size, then asks for the rest
    assert int(handler.ranges[2].removeprefix("bytes=").rstrip("-")) >= 2**20
    (dataset,) = open_datasets(tmp_path / "data")
    assert len(dataset.cases) == 3

"""The settings of the PACS service: strict, based on their file's folder, and all documented."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from hemolens.config import to_mapping
from hemolens.errors import ConfigError
from hemolens.pacs.config import DicomDestination, PacsConfig, WebDestination, load_pacs_config

PAGE = (Path(__file__).resolve().parents[1] / "docs/reference/pacs.md").read_text("utf-8")


def test_relative_paths_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    file = tmp_path / "pacs.toml"
    file.write_text(
        '[spool]\npath = "s"\n[queue]\nurl = "sqlite:///q.db"\n[listener.tls]\ncertificate = "c.pem"\nkey = "/k.pem"\n'
        '[[destinations]]\nkind = "dicomweb"\nurl = "https://x/dicom-web"\ntoken_file = "t"\n'
    )
    config = load_pacs_config(file)
    assert config.spool.path == str(tmp_path / "s")
    assert config.queue_url == f"sqlite:///{tmp_path}/q.db"
    assert config.listener.tls is not None
    assert (config.listener.tls.certificate, config.listener.tls.key) == (str(tmp_path / "c.pem"), "/k.pem")
    (destination,) = config.destinations
    assert isinstance(destination, WebDestination)
    assert destination.token_file == str(tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[destinations]]\nkind = "dicom"\n[[destinations]]\nkind = "dicom"\n', "two destinations are called 'pacs'"),
        ('[[destinations]]\nkind = "dicomweb"\nurl = "ftp://x"\n', "url must start with"),
        ('[completion]\nquery = "nobody"\n', "'nobody' is no DICOM destination"),
        ('[listener]\nae_title = "SEVENTEEN-LETTERS"\n', "is no AE title"),
        ("[worker]\nattempts = 0\n", "attempts must lie between"),
        ("[spool]\nquota_gb = 0\n", "quota_gb must be above 0"),
        ('[webhook]\nurl = "https://x"\n', "secret_file is missing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pacs.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_pacs_config(tmp_path / "pacs.toml")


@pytest.mark.parametrize("section", [f.name for f in fields(PacsConfig) if f.name != "destinations"])
def test_every_setting_is_documented(section: str) -> None:
    for name in to_mapping(getattr(PacsConfig(), section)):
        assert f"`{name}`" in PAGE or f"`{section}.{name}`" in PAGE or f"`{name}`, " in PAGE, f"{section}.{name}"


@pytest.mark.parametrize("kind", [DicomDestination, WebDestination])
def test_every_setting_of_a_destination_is_documented(kind: type) -> None:
    for name in (f.name for f in fields(kind)):
        assert f"`{name}" in PAGE, name

"""What is shipped: one version, the license, all package data, and a command that starts fast."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from lens_attr._version import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lens_attr"
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_one_version() -> None:
    assert CITATION["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_installed_metadata() -> None:
    try:
        installed = metadata.distribution("lens-attr")
    except metadata.PackageNotFoundError:
        pytest.skip("lens_attr runs from its source tree, it is not installed")
    assert installed.version == __version__
    assert installed.metadata["License-Expression"] == "MIT"
    (command,) = installed.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("lens-attr", "lens_attr.cli:main")


def test_license_is_mit_with_a_note_on_patents() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    license_text, note = text.split("Note on patents")
    assert license_text.startswith("MIT License\n\nCopyright (c) 2026 lens_attr contributors\n")
    assert "patent" not in license_text
    assert "Layer-wise relevance propagation (LRP)" in note


def test_citation_has_what_the_format_requires() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    for entry in (CITATION, *CITATION["references"]):
        assert {"title", "authors"} <= entry.keys()
        assert all(author.keys() & {"name", "family-names"} for author in entry["authors"])
    papers = {i["value"] for r in CITATION["references"] for i in r.get("identifiers", [])}
    assert papers == {"arXiv:2505.17630", "arXiv:2502.15886", "arXiv:2402.05602"}


def test_command_starts_without_torch_and_data_is_there() -> None:
    """In a process of its own, because torch is already loaded in this one."""
    check = [sys.executable, str(ROOT / ".ci" / "check_install.py")]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built without an environment."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return folder


def package_files() -> set[str]:
    """Every file of the package that belongs in a distribution, as ``lens_attr/...``."""
    paths = (path.relative_to(ROOT) for path in PACKAGE.rglob("*") if path.is_file())
    files = {
        path.as_posix()
        for path in paths
        if not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    }
    assert "lens_attr/py.typed" in files
    assert any(name.startswith("lens_attr/demo/models/") for name in files)
    return files


def test_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files()


def test_source_distribution_holds_the_package(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        names = {name.split("/", 1)[1] for name in source.getnames()}
    top = {"LICENSE", "README.md", "CITATION.cff", "CHANGELOG.md", "pyproject.toml"}
    assert package_files() | top <= names

"""The README says what the code does: every setting and every exit code is documented where a user looks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def variables_read_by(module: Path) -> set[str]:
    """Returns the string constants of a settings module that look like environment variables."""
    tree = ast.parse(module.read_text())
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {text for text in constants if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|PORT|HOST", text)}


@pytest.mark.parametrize("package", ["downloader/nlocalmodels_downloader", "server/nlocalmodels_server"])
def test_readme_names_every_variable(package: str) -> None:
    # The pod's identity is for the chart to set.
    names = variables_read_by(ROOT / "images" / package / "settings.py") - {"POD_UID", "POD_NAME", "TERMINATION_MESSAGE_PATH"}
    assert names
    assert not [name for name in names if f"`{name}`" not in README]


@pytest.mark.parametrize("package", ["downloader/nlocalmodels_downloader", "server/nlocalmodels_server"])
def test_environment_is_read_in_one_place(package: str) -> None:
    folder = ROOT / "images" / package
    readers = [path.name for path in folder.rglob("*.py") if re.search(r"environ\[|environ\.get|getenv", path.read_text())]
    assert readers == ["settings.py"]


def test_packages_never_import_one_another() -> None:
    for mine, other in (("downloader", "server"), ("server", "downloader")):
        for path in (ROOT / "images" / mine).rglob("*.py"):
            assert f"nlocalmodels_{other}" not in path.read_text(), path


@pytest.mark.parametrize(
    ("package", "library", "door"),
    [("downloader", "requests", "http_client.py"), ("server", "llama_cpp", "llama.py")],
)
def test_a_library_has_one_door(package: str, library: str, door: str) -> None:
    pattern = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    doors = {path.name for path in (ROOT / "images" / package).rglob("*.py") if pattern.search(path.read_text())}
    assert doors == {door}


def test_modules_are_small() -> None:
    for path in (ROOT / "images").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path

from __future__ import annotations

from pathlib import Path

import pytest

import images


@pytest.fixture(scope="session")
def archives() -> dict[str, Path]:
    """The images as they stand in this checkout, by name."""
    return images.ensure_images(["server", "downloader", "downloader-s3", "source"])


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here is on this machine."""
    monkeypatch.setenv("NO_PROXY", "*")

"""Fixtures that all tests may use."""

from __future__ import annotations

from pathlib import Path

import pytest

import embedded_model


@pytest.fixture(scope="session")
def embedded_model_path() -> Path:
    """The real small model, gemma-3-270m in Q4_K_M, from the cache or else from its packages."""
    return embedded_model.ensure_embedded_model()

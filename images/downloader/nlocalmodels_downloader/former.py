"""Contents that a file had in a set which is still on the volume, so that going back to that set fetches nothing.

MODEL_PATH/.nlocalmodels/former/<sha256>   what had a name until another content got it
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

FORMER_FOLDER = "former"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Former:
    def __init__(self, state: Path) -> None:
        self._folder = state / FORMER_FOLDER

    def keep(self, path: Path, sha256: str) -> None:
        """Keeps a published file's content beyond its replacement; where there are no hard links, it goes as it always did."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            os.link(path, self._folder / sha256)

    def find(self, sha256: str | None, size_bytes: int | None) -> Path | None:
        """Returns where a content is kept. It is still to be verified."""
        if sha256 is None:
            return None
        path = self._folder / sha256
        with suppress(OSError):
            if path.lstat().st_size == (size_bytes or path.lstat().st_size):
                return path
        return None

    def contents(self) -> dict[str, int]:
        """Returns digest and size of all that is kept."""
        sizes: dict[str, int] = {}
        for path in self._folder.glob("*"):
            with suppress(OSError):
                if _SHA256.fullmatch(path.name):
                    sizes[path.name] = path.lstat().st_size
        return sizes

    def discard(self, needed: Collection[str]) -> int:
        """Removes all contents but the needed ones, and returns the bytes that are free again."""
        freed_bytes = 0
        for sha256, size_bytes in self.contents().items():
            if sha256 not in needed:
                with suppress(OSError):
                    (self._folder / sha256).unlink()
                    freed_bytes += size_bytes
        return freed_bytes

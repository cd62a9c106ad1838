"""downloads.yaml as it is now: a mounted ConfigMap changes while a pod runs."""

from __future__ import annotations

import logging
from pathlib import Path

from nlocalmodels_downloader.config import Config, load_config
from nlocalmodels_downloader.errors import ConfigError

log = logging.getLogger(__name__)


class FollowedList:
    """The list in force, `config`: what was last said that could be used.

    Raises:
        ConfigError: the list is wrong from the beginning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = self._read()
        self.config: Config = load_config(path)

    def refresh(self) -> bool:
        """Whether there is a new list in force. A wrong one is logged once."""
        content = self._read()
        # By content: a mounted ConfigMap changes by a swapped link, under which an older file may have a newer list.
        if content is None or content == self._content:
            return False
        self._content = content
        try:
            self.config = load_config(self._path)
        except ConfigError as error:
            log.error("%s The list from before stays in force.", error)
            return False
        log.info("%s has changed", self._path)
        return True

    def _read(self) -> bytes | None:
        """Returns None while the list is not there: in a swap of links, it may be gone for a moment."""
        try:
            return self._path.read_bytes()
        except OSError:
            return None

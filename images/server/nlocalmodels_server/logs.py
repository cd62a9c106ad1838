"""One line per event on stderr, with a UTC time."""

from __future__ import annotations

import logging
import sys
import time


def log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    package = logging.getLogger("nlocalmodels_server")
    package.handlers[:] = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False

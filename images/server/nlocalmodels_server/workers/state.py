"""What a model is doing."""

from __future__ import annotations

from enum import Enum


class WorkerState(Enum):
    UNLOADED = "unloaded"
    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"

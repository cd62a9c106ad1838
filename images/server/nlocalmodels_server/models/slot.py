"""What there is of one model: what was wanted, and the processes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from nlocalmodels_server.models.reload import Target
from nlocalmodels_server.workers.worker import Worker


@dataclass(slots=True)
class Replacement:
    """What loads beside a model that serves, or could not be loaded."""

    target: Target
    worker: Worker


@dataclass(slots=True)
class Slot:
    """A model: the process that gets its requests, and the one that is to take its place, if any."""

    target: Target
    worker: Worker
    replacement: Replacement | None = None
    # Requests that wait for it to load.
    num_waiting: int = 0
    loading: asyncio.Task[None] | None = None

    @property
    def newest(self) -> Target:
        """What was last wanted of it."""
        return self.replacement.target if self.replacement is not None else self.target

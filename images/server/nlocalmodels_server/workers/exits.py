"""How a process ended, in words."""

from __future__ import annotations

import signal


def describe_exit(code: int | None) -> str:
    """Returns how a process ended, in words: `ended with exit code 70`, `was ended by SIGKILL (out of memory?)`."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

"""A process that computes in its turn: `python -m support.turn_taker FD PLACE PATIENCE_SECONDS STEP_SECONDS`.

It says each step's start and end (monotonic, in nanoseconds) on its standard output and runs until its standard input ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from nlocalmodels_server.workers.turns import Turn


def main() -> None:
    fd, place = int(sys.argv[1]), int(sys.argv[2])
    patience_seconds, step_seconds = float(sys.argv[3]), float(sys.argv[4])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    turn = Turn(fd, place, patience_seconds)
    while True:
        with turn:
            started_ns = time.monotonic_ns()
            time.sleep(step_seconds)
            ended_ns = time.monotonic_ns()
        print(started_ns, ended_ns, flush=True)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()

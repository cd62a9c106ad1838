"""Entry point of `python -m nlocalmodels_server`."""

import os
import signal

if __name__ == "__main__":
    # The first process of a container has no default handlers: a stop during the imports would be lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    from nlocalmodels_server.serve import main

    raise SystemExit(main())

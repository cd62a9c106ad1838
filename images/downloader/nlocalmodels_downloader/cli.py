"""The command line: `python -m nlocalmodels_downloader {sync,plan,watch,wait,verify} --config downloads.yaml`.

`receive`, which needs no such list, takes `--model-path` instead.
"""

from __future__ import annotations

import _thread
import argparse
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from nlocalmodels_downloader.commands import Call, run_plan, run_receive, run_sync, run_verify, run_wait, run_watch
from nlocalmodels_downloader.errors import DownloaderError
from nlocalmodels_downloader.settings import Settings, read_settings

log = logging.getLogger(__name__)

_COMMANDS: dict[str, tuple[Callable[[Call], int], str]] = {
    "sync": (run_sync, "fetch what is missing, verify it and write the set's manifest"),
    "plan": (run_plan, "say what sync would do, without a network call"),
    "watch": (run_watch, "sync now, whenever downloads.yaml changes, and every five minutes, until SIGTERM"),
    "wait": (run_wait, "wait until another pod's sync is complete; writes nothing, for read-only volumes"),
    "verify": (run_verify, "compute every declared file's digest anew"),
    "receive": (run_receive, "take in GGUF files that a person copies here, check them and publish them"),
}

_EXIT_CODES = """exit codes:
  0    everything declared is present and verified; watch: stopped by SIGTERM or SIGINT
  2    downloads.yaml, a setting or the command line is wrong
  10   denied: the source wants a token or refuses the one it got
  11   gone: the source has no such file
  12   space: the volume is full or cannot be written
  13   corrupt: the bytes are not what was declared, or not GGUF; receive: not every file could be published
  14   exhausted: retries used up without progress, or waited in vain
  15   refused: the source asks for something unsafe or unverifiable
  143  stopped by SIGTERM or SIGINT; the next run goes on from there
With several failures, the first one's code. Its reason is also one line in the termination message.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    _log_lines_to_stderr()
    settings = Settings()
    try:
        settings = read_settings(os.environ)
        run, _ = _COMMANDS[options.command]
        return run(
            Call(
                options.path,
                settings,
                # Before the command reads anything: a stop must not find the default handler at any moment of it.
                _stopped_by_signals() if options.command != "plan" else threading.Event(),
                lambda message: _write_termination_message(settings.termination_message_path, message),
                options.json,
                getattr(options, "metrics_file", None),
                getattr(options, "timeout_seconds", None),
            )
        )
    except DownloaderError as error:
        log.error("%s", error)
        _write_termination_message(settings.termination_message_path, str(error))
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nlocalmodels_downloader",
        description="Fetches the declared GGUF models onto a volume: resumed after a kill, verified, published atomically.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    json_help = "write results to stdout as one JSON object per line; the log stays text on stderr"
    parser.add_argument("--json", action="store_true", help=json_help)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "receive":
            where, form, path_help = "--model-path", "FOLDER", "the volume, such as /app/models"
        else:
            where, form, path_help = "--config", "downloads.yaml", "what belongs on the volume"
        command.add_argument(where, dest="path", type=Path, required=True, metavar=form, help=path_help)
        # Suppressed, so that its absence here does not undo a --json before the command.
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=json_help)
        if name in ("sync", "watch"):
            command.add_argument(
                "--metrics-file", type=Path, metavar="FILE", help="keep metrics there, in Prometheus text format"
            )
        if name in ("wait", "receive"):
            command.add_argument(
                "--timeout-seconds", type=_seconds, metavar="N", help="give up with 14; without it, wait for ever"
            )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def _stopped_by_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread, since a handler runs between any two steps of the main thread, which may hold the event's lock.
        signal.signal(number, lambda *_: _thread.start_new_thread(stop.set, ()))
    return stop


def _log_lines_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    package = logging.getLogger("nlocalmodels_downloader")
    package.handlers[:] = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False


def _write_termination_message(path: Path, message: str) -> None:
    """Leaves one line for `kubectl describe pod`, where a kubelet has mounted the file."""
    line = " ".join(message.split())[:4000]
    # The reason is in the log already, so a message that cannot be left must not become the failure.
    with suppress(OSError):
        if path.is_file():
            path.write_text(line + "\n", encoding="utf-8")

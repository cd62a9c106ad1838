"""The command line: `python -m nlocalmodels_downloader {sync,plan,verify} --config downloads.yaml`."""

from __future__ import annotations

import _thread
import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nlocalmodels_downloader.config import Config, load_config
from nlocalmodels_downloader.errors import DownloaderError
from nlocalmodels_downloader.partial import naming_space_errors
from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.settings import Settings, read_settings
from nlocalmodels_downloader.sync import Action, Failure, Synchronizer, plan_model
from nlocalmodels_downloader.volume import Volume, sha256_of

log = logging.getLogger(__name__)

_EXIT_CODES = """exit codes:
  0    everything declared is present and verified
  2    downloads.yaml, a setting or the command line is wrong
  10   denied: the source wants a token or refuses the one it got
  11   gone: the source has no such file
  12   space: the volume is full or cannot be written
  13   corrupt: the bytes are not what was declared, or not GGUF
  14   exhausted: retries used up without progress
  15   refused: the source asks for something unsafe or unverifiable
  143  stopped by SIGTERM or SIGINT; the next run goes on from there
With several failures, the first one's code. Its reason is also one line in the termination message.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="nlocalmodels_downloader",
        description="Fetches the declared GGUF models onto a volume: resumed after a kill, verified, published atomically.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("sync", "fetch what is missing, verify it and write the set's manifest"),
        ("plan", "say what sync would do, without a network call"),
        ("verify", "compute every declared file's digest anew"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, metavar="downloads.yaml", help="what belongs on the volume")
    options = parser.parse_args(arguments)
    _log_lines_to_stderr()
    settings = Settings()
    try:
        settings = read_settings(os.environ)
        config = load_config(options.config)
        run = {"sync": _sync, "plan": _plan, "verify": _verify}[options.command]
        with naming_space_errors(config.model_path):
            return run(config, settings)
    except DownloaderError as error:
        log.error("%s", error)
        _write_termination_message(settings.termination_message_path, str(error))
        return error.exit_code


def _sync(config: Config, settings: Settings) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread, since a handler runs between any two steps of the main thread, which may hold the event's lock.
        signal.signal(number, lambda *_: _thread.start_new_thread(stop.set, ()))
    failures = Synchronizer(config, settings, stop).run()
    if not failures:
        return 0
    reasons = " ".join(_reason(failure) for failure in failures)
    log.error("%d of %d models failed: %s", len(failures), len(config.models), ", ".join(f.model.id for f in failures))
    _write_termination_message(settings.termination_message_path, reasons)
    return failures[0].error.exit_code


def _reason(failure: Failure) -> str:
    return f"{failure.model.id}: {failure.error}"


def _plan(config: Config, settings: Settings) -> int:
    volume = Volume(config.model_path, settings.owner)
    fetch_bytes = 0
    for model in config.models:
        action = plan_model(volume, model)
        size = human_bytes(model.size_bytes) if model.size_bytes else "size unknown"
        print(f"{model.id}: {action.value} ({model.file}, {size})")
        if action is Action.FETCH:
            fetch_bytes += model.size_bytes or 0
    print(f"to fetch: {human_bytes(fetch_bytes)}")
    return 0


def _verify(config: Config, settings: Settings) -> int:
    volume = Volume(config.model_path, settings.owner)
    num_bad = 0
    for model in config.models:
        recorded = volume.verified(model.file)
        expected = model.sha256 or (recorded.sha256 if recorded else None)
        try:
            digest = sha256_of(volume.path(model.file), threading.Event())
        except OSError as error:
            verdict, good = f"cannot be read ({error.strerror}); run sync", False
        else:
            good = digest == expected
            verdict = f"sha256 {digest} as declared" if good else f"sha256 is {digest} instead of {expected}; run sync"
        num_bad += not good
        print(f"{model.id}: {model.file}: {verdict}")
    return 13 if num_bad else 0


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

"""Runs the downloader with faults below it: killed at a step of its own, on locks that lie, without hard links.

A step is one call that changes the volume. Nothing of the downloader is replaced, only what it calls of the operating system.

    python faulty_downloader.py sync --config downloads.yaml      with the faults that the variable FAULTS names
    python faulty_downloader.py --serve                           an order a line, each carried out in a fork
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import functools
import io
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

# Every second argument of these is what they make.
_TO_SECOND = ("rename", "replace", "link")
_ON_PATHS = ("mkdir", "rmdir", "unlink", "remove", "chmod", "utime")
_ON_DESCRIPTORS = ("fsync", "fdatasync", "ftruncate", "write", "pwrite")
_NAMES = (
    (re.compile(r"[0-9a-f]{64}"), "KEY"),
    (re.compile(r"\.[0-9a-f]{32}\.new$"), ".TOKEN.new"),
    (re.compile(r"\.\d+\.new$"), ".PID.new"),
    (re.compile(r"sets/(\.?)[0-9a-f]{12}"), r"sets/\1SET"),
    (re.compile(r"replaced/[^-]+"), "replaced/STAMP"),
)


@dataclass(frozen=True)
class Faults:
    """What is wrong with the machine.

    `kill_at` counts the steps that match `step`, from 1; 0 kills never. `moment` is "before" the step, "half" of it for
    bytes written, or "after" it.
    """

    root: str
    trace: str | None = None
    step: str = ""
    kill_at: int = 0
    moment: str = "before"
    lying_flock: bool = False
    no_links: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class _Steps:
    """Counts the steps, and ends the process at one of them."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._step = re.compile(faults.step)
        self._matching = itertools.count(1)
        self._lock = threading.Lock()
        self._write = os.write
        self._trace = os.open(faults.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if faults.trace else None

    def take(self, name: str, path: str, call: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        if not path.startswith(self._faults.root):
            return call()
        text = f"{name} {_plain(path[len(self._faults.root) :].lstrip('/') or '.')}"
        with self._lock:
            if self._trace is not None:
                self._write(self._trace, f"{text}\n".encode())
            is_it = bool(self._step.search(text)) and next(self._matching) == self._faults.kill_at
            if is_it and self._faults.moment == "before":
                _die()
            if is_it and self._faults.moment == "half" and half is not None:
                half()
                _die()
            if is_it:
                # Nobody else takes a step meanwhile.
                try:
                    call()
                finally:
                    _die()
        return call()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _plain(path: str) -> str:
    for pattern, name in _NAMES:
        path = pattern.sub(name, path)
    return path


def _text(place: Any) -> str:
    if isinstance(place, int):
        try:
            return os.readlink(f"/proc/self/fd/{place}")
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(place))


def install(faults: Faults) -> None:
    steps = _Steps(faults)
    for name in _ON_PATHS + _TO_SECOND + _ON_DESCRIPTORS:
        _wrap(steps, name)
    _wrap_opens(steps)
    copy_file_range = os.copy_file_range

    def copy(source: int, target: int, count: int, *offsets: Any) -> Any:
        return steps.take("copy", _text(target), lambda: copy_file_range(source, target, count, *offsets))

    vars(os)["copy_file_range"] = copy
    if faults.lying_flock:
        vars(fcntl)["flock"] = lambda *_: None
    if faults.no_links:
        vars(os)["link"] = _no_link


def _wrap(steps: _Steps, name: str) -> None:
    original = getattr(os, name)
    index = 1 if name in _TO_SECOND else 0

    def call(*args: Any, **kwargs: Any) -> Any:
        half = None
        if name in ("write", "pwrite"):
            data = memoryview(args[1])
            half = lambda: original(args[0], data[: len(data) // 2], *args[2:])  # noqa: E731
        return steps.take(name, _text(args[index]), lambda: original(*args, **kwargs), half)

    setattr(os, name, call)


def _wrap_opens(steps: _Steps) -> None:
    os_open, io_open = os.open, io.open

    def open_descriptor(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
        if not flags & (os.O_CREAT | os.O_TRUNC):
            return os_open(path, flags, *args, **kwargs)
        return steps.take("open", _text(path), lambda: os_open(path, flags, *args, **kwargs))

    def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, int) or not set(mode) & set("wax"):
            return io_open(path, mode, *args, **kwargs)
        return steps.take("open", _text(path), lambda: io_open(path, mode, *args, **kwargs))

    vars(os)["open"] = open_descriptor
    vars(io)["open"] = vars(builtins)["open"] = open_file


def _no_link(source: Any, target: Any, **_: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), source, None, target)


def _look_often(poll_seconds: float) -> None:
    """Shortens waits that bring nothing, since they would come hundreds of times."""
    from nlocalmodels_downloader import fetch, lease, retry, transfer  # noqa: PLC0415

    transfer._TICK_SECONDS = 0.005
    retry.MAX_WAIT_SECONDS = 0.02
    vars(fetch)["wait_for_turn"] = functools.partial(lease.wait_for_turn, poll_seconds=poll_seconds)


def _serve() -> None:
    from nlocalmodels_downloader import cli  # noqa: F401, PLC0415

    _look_often(0.02)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _carry_out(order)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _carry_out(order: dict[str, Any]) -> None:
    from nlocalmodels_downloader import cli  # noqa: PLC0415

    code = 70
    try:
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(order["environ"])
        install(Faults(**order["faults"]))
        code = cli.main(order["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        _serve()
    else:
        _look_often(0.1)
        install(Faults(**json.loads(os.environ["FAULTS"])))
        from nlocalmodels_downloader.cli import main

        sys.exit(main())

"""What each command does, between the command line and the modules that do it."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlocalmodels_downloader.config import Config, load_config
from nlocalmodels_downloader.errors import CorruptError
from nlocalmodels_downloader.followed import FollowedList
from nlocalmodels_downloader.manifest import ManifestError, manifest_paths, read_manifest
from nlocalmodels_downloader.metrics import MetricsSink
from nlocalmodels_downloader.partial import naming_space_errors
from nlocalmodels_downloader.plan import Action, plan_file, plan_model
from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.prune import PrunePlan, plan_prune
from nlocalmodels_downloader.receive import Receiver
from nlocalmodels_downloader.report import Board, Outcome, Sink
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_downloader.sinks import BarSink, JsonSink, text_sink, write_json_line
from nlocalmodels_downloader.sync import Failure, Synchronizer
from nlocalmodels_downloader.volume import STATE_FOLDER, Volume, sha256_of
from nlocalmodels_downloader.wait import wait_for_set
from nlocalmodels_downloader.watch import watch

log = logging.getLogger(__name__)

# A bar that moves every ten seconds, as the log does, looks dead.
_BAR_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Call:
    """A command as it was called. `path` is of downloads.yaml, or of the models where no such list is needed.

    `leave_message` writes the termination message.
    """

    path: Path
    settings: Settings
    stop: threading.Event
    leave_message: Callable[[str], None]
    json: bool = False
    metrics_file: Path | None = None
    timeout_seconds: float | None = None
    _metrics: list[MetricsSink] = field(default_factory=list)

    def say(self, text: str, event: str, **fields: object) -> None:
        """Writes a result to stdout: the text, or the event with its fields."""
        try:
            if self.json:
                write_json_line(sys.stdout, {"event": event, **fields})
            else:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
        except BrokenPipeError:
            # Nobody reads any more, as with `| head`; the exit code still counts.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def new_board(self) -> Board:
        """Returns the board of one run. The metrics go on from one run to the next."""
        if self.metrics_file is not None and not self._metrics:
            self._metrics.append(MetricsSink(self.metrics_file))
        told: Sink = JsonSink(sys.stdout) if self.json else text_sink(sys.stdout)
        interval_seconds = self.settings.progress_seconds
        if isinstance(told, BarSink):
            interval_seconds = min(interval_seconds, _BAR_SECONDS)
        return Board([told, *self._metrics], interval_seconds)


def run_sync(call: Call) -> int:
    config = load_config(call.path)
    board = call.new_board()
    failures = _synchronize(call, config, board)
    board.summary()
    if not failures:
        return 0
    log.error("%d of %d models failed: %s", len(failures), len(config.models), ", ".join(f.model.id for f in failures))
    call.leave_message(" ".join(f"{failure.model.id}: {failure.error}" for failure in failures))
    return failures[0].error.exit_code


def run_watch(call: Call) -> int:
    def sync_once(config: Config) -> list[Failure]:
        board = call.new_board()
        failures = _synchronize(call, config, board)
        # A check that found all in place every few minutes is no news.
        if any(model.outcome is not Outcome.KEPT for model in board.state().models):
            board.summary()
        return failures

    return watch(call.path, sync_once, call.stop)


def _synchronize(call: Call, config: Config, board: Board) -> list[Failure]:
    with board.running():
        return Synchronizer(config, call.settings, call.stop, board).run()


def run_plan(call: Call) -> int:
    config = load_config(call.path)
    volume = Volume(config.model_path, call.settings.owner)
    fetch_bytes = 0
    with naming_space_errors(config.model_path):
        for model in config.models:
            action = plan_model(volume, model)
            sizes = [file.size_bytes for file in model.files]
            size_bytes = None if None in sizes else sum(size or 0 for size in sizes)
            files = f"{model.file} and {len(model.shards)} more" if model.shards else model.file
            text = f"{model.id}: {action.value} ({files}, {'size unknown' if size_bytes is None else human_bytes(size_bytes)})"
            fields = {"action": action.name.lower(), "files": [file.file for file in model.files], "sizeBytes": size_bytes}
            call.say(text, "planned", model=model.id, **fields)
            missing = [file for file in model.files if plan_file(volume, file) is Action.FETCH]
            fetch_bytes += sum(file.size_bytes or 0 for file in missing)
        call.say(f"to fetch: {human_bytes(fetch_bytes)}", "plan", fetchBytes=fetch_bytes)
        if (plan := _plan_prune(config)) is not None:
            removed = [{"file": file.file, "sizeBytes": file.size_bytes} for file in plan.files]
            partials = [{"sha256": one.key, "workspace": one.workspace, "sizeBytes": one.size_bytes} for one in plan.partials]
            results = {"files": removed, "partials": partials, "sets": plan.sets, "problem": plan.problem}
            call.say(str(plan), "prune", **results, freedBytes=plan.freed_bytes)
    return 0


def _plan_prune(config: Config) -> PrunePlan | None:
    """Returns what a sync would prune once all is there, None if it is not to prune."""
    if config.prune_keep_sets is None:
        return None
    # A set without a manifest yet has no id that is known without the network, so its files are named instead.
    declared = [file for model in config.models for file in model.files]
    return plan_prune(
        config.model_path,
        config.prune_keep_sets,
        _current_set(config) or "",
        {file.file for file in declared},
        {file.sha256 for file in declared if file.sha256},
    )


def _current_set(config: Config) -> str | None:
    """Returns the id of the set on the volume that is the declared one."""
    declared = [(file.file, file.sha256) for model in config.models for file in model.files]
    for path in manifest_paths(config.model_path / STATE_FOLDER / "sets"):
        try:
            entries = read_manifest(path)
        except (ManifestError, OSError):
            continue
        digests = [(file.file, file.sha256) for entry in entries for file in entry.files]
        if len(digests) == len(declared) and all(
            file == there and digest in (None, sha256)
            for (file, digest), (there, sha256) in zip(declared, digests, strict=True)
        ):
            return path.stem
    return None


def run_wait(call: Call) -> int:
    followed = FollowedList(call.path)

    def read() -> Config:
        followed.refresh()
        return followed.config

    def report(missing: Sequence[str]) -> None:
        log.info("waiting for %d of %d models: %s", len(missing), len(followed.config.models), "; ".join(missing))
        if call.json:
            call.say("", "waiting", missing=list(missing))

    with naming_space_errors(followed.config.model_path):
        wait_for_set(read, call.stop, call.timeout_seconds, report)
    config = followed.config
    text = f"all {len(config.models)} models are there" if config.models else "no models are declared, so none is waited for"
    call.say(text, "ready", models=[model.id for model in config.models])
    return 0


def run_receive(call: Call) -> int:
    receiver = Receiver(call.path, call.settings, call.stop)
    receiver.open()
    # The name of a pod is what its containers have for a host name.
    pod = socket.gethostname()
    log.info("copy each GGUF file with: kubectl cp FILE %s:%s/ (and -n NAMESPACE)", pod, receiver.incoming)
    log.info("and when all are there, say so with: kubectl exec %s -- touch %s", pod, receiver.done_path)
    receiver.wait(call.timeout_seconds)
    problems: list[str] = []
    num_published = 0
    for received in receiver.take_in():
        if received.problem is None:
            num_published += 1
            verdict = f"published, {received.size_bytes} bytes, sha256 {received.sha256}"
        else:
            verdict = f"not published: {received.problem}"
            problems.append(f"{received.file}: {received.problem}")
        fields = {"sizeBytes": received.size_bytes, "sha256": received.sha256, "problem": received.problem}
        call.say(f"{received.file}: {verdict}", "received", file=received.file, **fields)
    if problems:
        call.leave_message(" ".join(problems))
    elif not num_published:
        log.warning("%s held no file, so nothing is published", receiver.incoming)
    return CorruptError.exit_code if problems else 0


def run_verify(call: Call) -> int:
    config = load_config(call.path)
    volume = Volume(config.model_path, call.settings.owner)
    problems: list[str] = []
    for model_id, file in [(model.id, file) for model in config.models for file in model.files]:
        recorded = volume.verified(file.file)
        expected = file.sha256 or (recorded.sha256 if recorded else None)
        digest: str | None = None
        try:
            digest = sha256_of(volume.path(file.file), call.stop)
        except OSError as error:
            verdict = f"cannot be read ({error.strerror}); run sync"
        else:
            verdict = f"sha256 {digest} as declared"
            if digest != expected:
                verdict = f"sha256 is {digest} instead of {expected}; run sync"
        good = digest is not None and digest == expected
        text = f"{model_id}: {file.file}: {verdict}"
        call.say(text, "verified", model=model_id, file=file.file, sha256=digest, expectedSha256=expected, good=good)
        if not good:
            problems.append(text)
    if problems:
        call.leave_message(" ".join(f"{problem}." for problem in problems))
    return CorruptError.exit_code if problems else 0

"""Measures the server against llama-server, both over HTTP on loopback with the same settings: `make bench-engine`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

import limited
import scenarios
from client import BenchError
from figures import Results
from meter import Meter, say
from peer import HERE, ensure_llama_server
from peer import version as peer_version
from plot import draw
from report import Circumstances, as_json, render, table
from scenarios import QUICK, STREAMS, Scale
from servers import PACKAGE, Server, Settings, Starter

# tools/ is on the path since peer.py was imported.
from embedded_model import ensure_embedded_model

SCENARIOS = ("decode", "prefix", "stall", "copy", "overhead", "two", "quota")
QUOTA_CPUS = 1.0
# What a server that looks at the host's cores takes on a usual one.
HOST_THREADS = 16


class Bench:
    """Runs the scenarios. All servers of a scenario are up at the same time and asked in turn: an idle one computes nothing."""

    def __init__(self, starter: Starter, scale: Scale, settings: Settings, num_runs: int, results: Results) -> None:
        self._starter = starter
        self._scale = scale
        self._settings = settings
        self._num_runs = num_runs
        self.results = results
        self.meter = Meter(starter.cpu_seconds)

    def one_model(self, selected: Sequence[str]) -> None:
        with ExitStack() as stack:
            ours = stack.enter_context(self._starter.ours(self._settings))
            peer = stack.enter_context(self._starter.peer(self._settings))
            self._warm_up([ours, peer])
            for run in range(self._num_runs):
                for scenario in selected:
                    for number in STREAMS if scenario == "decode" else (0,):
                        for server in _in_turn([ours, peer], run):
                            self._ask_one(scenario, number, server, run)

    def _ask_one(self, scenario: str, num_streams: int, server: Server, run: int) -> None:
        scale = self._scale
        if scenario == "decode":
            rate = self.meter.take(scenarios.decode, server, num_streams, scale.decode_tokens)
            self._add(server, run, {f"decode.{num_streams}": rate})
        elif scenario == "prefix":
            self._add(server, run, self.meter.take(scenarios.shared_prefix, server, scale))
        elif scenario == "stall":
            self._add(server, run, self.meter.take(scenarios.stall, server, scale))
        elif scenario == "copy":
            figures, text = self.meter.take(scenarios.copy, server, scale)
            self.results.texts[server.name] = text
            self._add(server, run, figures)
        elif server.name == "ours":
            milliseconds = self.meter.take(scenarios.overhead, server, scale.decode_tokens)
            self._add(server, run, {"overhead.milliseconds": milliseconds})

    def two_models(self) -> None:
        """Two files in one server of ours, against two processes of the peer with all threads each."""
        with ExitStack() as stack:
            single = stack.enter_context(self._starter.ours(self._settings))
            both = stack.enter_context(self._starter.ours(self._settings, ("first", "second")))
            peers = [stack.enter_context(self._starter.peer(self._settings)) for _ in both.endpoints]
            self._warm_up([single, both, *peers])
            num_tokens = self._scale.two_tokens
            for run in range(self._num_runs):
                alone = [self.meter.take(scenarios.decode, single, number, num_tokens) for number in (4, 8)]
                rates = self.meter.take(scenarios.two_models, both.endpoints, num_tokens)
                figures = {
                    "two.tokens_per_second": sum(rates),
                    "two.of_single": sum(rates) / alone[0],
                    "two.least_share": min(rates) / alone[0],
                    "two.single_4": alone[0],
                    "two.single_8": alone[1],
                    "two.first": rates[0],
                    "two.second": rates[1],
                }
                self._add(both, run, figures)
                endpoints = [endpoint for peer in peers for endpoint in peer.endpoints]
                rates = self.meter.take(scenarios.two_models, endpoints, num_tokens)
                figures = {"two.tokens_per_second": sum(rates), "two.first": rates[0], "two.second": rates[1]}
                self._add(peers[0], run, figures)

    def quota(self) -> None:
        """Ours finds the quota by itself; the peer has the threads that it would take on a common host."""
        reason = limited.why_not()
        if reason is not None:
            say(f"quota: skipped: {reason}")
            self.results.skipped["quota"] = reason
            return
        detecting, many = (replace(self._settings, num_threads=number) for number in (None, HOST_THREADS))
        with limited.cpu_quota(QUOTA_CPUS) as prefix, ExitStack() as stack:
            ours = stack.enter_context(self._starter.ours(detecting, prefix=prefix))
            peer = stack.enter_context(self._starter.peer(many, prefix))
            for server in (ours, peer):
                self.meter.take(scenarios.decode, server, 1, 8)
            for run in range(self._num_runs):
                for server in _in_turn([ours, peer], run):
                    rate = self.meter.take(scenarios.decode, server, 4, self._scale.quota_tokens)
                    self._add(server, run, {"quota.tokens_per_second": rate})

    def _warm_up(self, servers: Iterable[Server]) -> None:
        for server in servers:
            asyncio.run(scenarios.warm_up(server))

    def _add(self, server: Server, run: int, figures: Mapping[str, float]) -> None:
        self.results.add(server.name, figures)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        say(f"{run + 1}/{self._num_runs} {server.name}: {shown}")


def _in_turn(servers: list[Server], run: int) -> list[Server]:
    """Lets each be the first in every other run, so that neither always follows the other."""
    return servers if run % 2 == 0 else servers[::-1]


def run_all(options: argparse.Namespace, work: Path, results: Results) -> Circumstances:
    """Measures what is asked for."""
    num_cores = len(os.sched_getaffinity(0))
    llama_server = ensure_llama_server(jobs=num_cores)
    starter = Starter(work, options.package, llama_server, ensure_embedded_model())
    settings = Settings(num_threads=num_cores)
    num_runs = 1 if options.quick else options.runs
    bench = Bench(starter, QUICK if options.quick else Scale(), settings, num_runs, results)
    with_one = [name for name in SCENARIOS[:5] if name in options.scenario]
    if with_one:
        bench.one_model(with_one)
    if "two" in options.scenario:
        bench.two_models()
    if "quota" in options.scenario:
        bench.quota()
    return Circumstances(
        num_runs=num_runs,
        is_quick=options.quick,
        scenarios=options.scenario,
        num_cores=num_cores,
        settings=settings,
        peer_version=peer_version(),
        client_share=bench.meter.client_share,
        others_shares=bench.meter.others_shares,
    )


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _stop_on_signal(number: int, _frame: FrameType | None) -> None:
    # `timeout` sends its signal twice; the second must not break into the end of the servers.
    for other in _STOPPING:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one; may be given again")
    parser.add_argument("--runs", type=_positive, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one run with fewer tokens, to see a trend in two minutes")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="folder of another version of the server")
    parser.add_argument("--json", type=Path, help="where all values are written, too")
    parser.add_argument(
        "--output", type=Path, help="folder for RESULTS.md and its plot (default: here, after a run of all that is not quick)"
    )
    options = parser.parse_args()
    output = options.output or (None if options.scenario or options.quick else HERE)
    options.scenario = options.scenario or list(SCENARIOS)
    for number in _STOPPING:
        signal.signal(number, _stop_on_signal)
    results = Results()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-engine-") as folder:
            circumstances = run_all(options, Path(folder).resolve(), results)
    except BenchError as error:
        say(str(error))
        return 2
    finally:
        # Also what a run that is stopped has measured until then.
        sys.stdout.write("\n".join(table(results)) + "\n")
    if options.json:
        options.json.write_text(as_json(results, circumstances), encoding="utf-8")
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "RESULTS.md").write_text(render(results, circumstances), encoding="utf-8")
        (output / "results.svg").write_text(draw(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

from __future__ import annotations

import re
from pathlib import Path

from nlocalmodels_server.api.metrics import _family
from support.gguf_files import write_llama
from support.live_server import LiveFolder, live_server, wait_for
from support.serving import RunningServer

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')


def samples(server: RunningServer) -> dict[str, float]:
    """Reads /metrics, and fails on a line that is none of the format's."""
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in answer.text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) nlocalmodels_[a-z_]+ .+", line)
            continue
        match = _SAMPLE.fullmatch(line)
        assert match, line
        found[f"{match[1]}{{{match[2] or ''}}}"] = float(match[3])
    return found


def test_metrics_tell_each_models_state(tiny_server: RunningServer) -> None:
    found = samples(tiny_server)
    assert found['nlocalmodels_model_state{model="tiny",state="ready"}'] == 1
    assert found['nlocalmodels_model_state{model="tiny",state="failed"}'] == 0
    assert found['nlocalmodels_model_restarts_total{model="tiny"}'] == 0
    assert found["nlocalmodels_ready{}"] == 1


def test_metrics_tell_of_a_model_that_a_reload_adds(tmp_path: Path) -> None:
    folder = LiveFolder(tmp_path)
    folder.models.mkdir()
    write_llama(folder.models / "first.gguf")
    folder.tell("first")
    with live_server(folder) as server:
        write_llama(folder.models / "second.gguf", seed=1)
        folder.tell("first", "second")
        wait_for(server, lambda: samples(server).get('nlocalmodels_model_state{model="second",state="ready"}') == 1)
        folder.tell_text("models: 5\n")
        wait_for(server, lambda: samples(server)["nlocalmodels_config_problem{}"] == 1)


def test_labels_are_escaped() -> None:
    last = _family("x", "gauge", "X.", [({"model": 'a"b\\c\nd'}, 1)]).splitlines()[-1]
    assert last == r'nlocalmodels_x{model="a\"b\\c\nd"} 1'

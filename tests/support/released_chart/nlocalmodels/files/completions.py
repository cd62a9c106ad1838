"""Run by `helm test`: asks every model for a completion and compares what is served with what the chart declares."""

import json
import os
import sys
import time
import urllib.request

ADDRESS = os.environ["ADDRESS"]
DECLARED = os.environ["MODELS"].split()
TIMEOUT_SECONDS = float(os.environ["TIMEOUT_SECONDS"])
# The Service is asked directly, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(ADDRESS + path, data, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=TIMEOUT_SECONDS) as answer:
        return json.load(answer)


def complete(model):
    """Returns what is wrong with the model's completion, None when nothing is."""
    started = time.monotonic()
    try:
        answer = ask("/v1/completions", {"model": model, "prompt": "The capital city of France is called", "max_tokens": 8})
        num_tokens = answer["usage"]["completion_tokens"]
        text = answer["choices"][0]["text"]
    except Exception as error:
        detail = error.read().decode(errors="replace") if hasattr(error, "read") else error
        return f"{model}: no completion: {detail}"
    print(f"{model}: {num_tokens} tokens in {time.monotonic() - started:.1f} s: {text!r}", flush=True)
    return None if num_tokens > 0 else f"{model}: an empty completion"


served = [model["id"] for model in ask("/v1/models")["data"]]
problems = [f"{model}: declared, but not served; there are {', '.join(served) or 'none'}" for model in DECLARED if model not in served]
if not served:
    problems.append("no model is served")
problems += [problem for model in served if (problem := complete(model))]
print(*problems, sep="\n")
print(f"{len(served)} models served, {len(DECLARED)} declared, {len(problems)} problems")
sys.exit(1 if problems else 0)

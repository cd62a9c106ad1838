"""Run by `helm test`: asks every model for a completion and compares what is served with what the chart declares."""

import json
import os
import sys
import time
import urllib.request

ADDRESS = os.environ["ADDRESS"]
DECLARED = os.environ["MODELS"].split()
# The set that running pods are about to take up, and what the upgrade has changed; both may be empty.
SET = os.environ.get("SET", "")
CHANGES = os.environ.get("CHANGES", "")
TIMEOUT_SECONDS = float(os.environ["TIMEOUT_SECONDS"])
# So many answers in a row that name the set: the Service chooses another pod each time.
NUM_AGREEING = 8
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


def wait_for_set():
    """Returns what is wrong with the set that is served, None when it is the declared one."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    num_agreeing = 0
    while num_agreeing < NUM_AGREEING:
        try:
            said = ask("/readyz")
            states = {
                worker["state"] for model in said["models"].values() for worker in (model, model.get("replacement", model))
            }
            is_there = said.get("set") == SET and "pending" not in said and not states & {"waiting", "loading"}
            num_agreeing = num_agreeing + 1 if is_there else 0
        except Exception as error:
            num_agreeing, said = 0, error
        if time.monotonic() > deadline:
            return f"set {SET}: not served after {TIMEOUT_SECONDS:.0f} s: {said}"
        time.sleep(0.25 if num_agreeing else 2)
    return None


if CHANGES:
    print(CHANGES, flush=True)
late = wait_for_set() if SET else None
served = [model["id"] for model in ask("/v1/models")["data"]]
problems = [
    f"{model}: declared, but not served; there are {', '.join(served) or 'none'}" for model in DECLARED if model not in served
]
if late:
    problems.append(late)
if not served:
    problems.append("no model is served")
problems += [problem for model in served if (problem := complete(model))]
print(*problems, sep="\n")
print(f"{len(served)} models served, {len(DECLARED)} declared, {len(problems)} problems")
sys.exit(1 if problems else 0)

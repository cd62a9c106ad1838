"""Runs in a pod: asks models in turn, streaming and not, each time over a new connection.

It prints what has come of it as a line of JSON every second, and ends on SIGUSR1, or after MAX_SECONDS.
"""

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter

HOST = os.environ["ADDRESS"]
MODELS = os.environ["MODELS"].split()
NUM_CLIENTS = 4
NUM_TOKENS = 24

stop = threading.Event()
lock = threading.Lock()
answers: Counter[str] = Counter()
failures: list[str] = []


def ask(model: str, streams: bool) -> str | None:
    """Returns what is wrong with an answer, None when nothing is."""
    connection = http.client.HTTPConnection(HOST, timeout=60)
    try:
        body = {"model": model, "prompt": "abc", "max_tokens": NUM_TOKENS, "temperature": 0, "stream": streams}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            return f"{answer.status} {text[:200]}"
        if not streams:
            num_tokens = json.loads(text)["usage"]["completion_tokens"]
            return None if num_tokens == NUM_TOKENS else f"{num_tokens} tokens"
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        if events[-1] != "[DONE]" or any("error" in json.loads(event) for event in events[:-1]):
            return f"a stream that ends with {events[-1][:200]}"
        return None
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def client(number: int) -> None:
    turn = number
    while not stop.is_set():
        turn += 1
        model, streams = MODELS[turn % len(MODELS)], turn // len(MODELS) % 2 == 0
        problem = ask(model, streams)
        with lock:
            if problem is None:
                answers[model] += 1
            elif len(failures) < 50:
                failures.append(f"{time.strftime('%H:%M:%S')} {model}{' stream' if streams else ''}: {problem}")


signal.signal(signal.SIGUSR1, lambda *_: stop.set())
threads = [threading.Thread(target=client, args=(number,)) for number in range(NUM_CLIENTS)]
for thread in threads:
    thread.start()
end = time.monotonic() + float(os.environ["MAX_SECONDS"])
while not stop.wait(1.0) and time.monotonic() < end:
    with lock:
        print(json.dumps({"answers": answers, "failures": failures}), flush=True)
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({"answers": answers, "failures": failures}), flush=True)

"""Decodes a few tokens with the CPU backend that llama.cpp picks, and prints JSON. test_cpu_variants.py runs it.

`decode.py --quantize FROM TO` writes a Q4_0 model instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp.llama_cpp as lib

from nlocalmodels_server.engine import llama

NUM_TOKENS = 8


def quantize(source: str, target: str) -> None:
    params = lib.llama_model_quantize_default_params()
    params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q4_0
    params.nthread = 1
    assert lib.llama_model_quantize(source.encode(), target.encode(), params) == 0


def decode(path: Path, capture: llama.LogCapture) -> list[int]:
    """Returns the likeliest tokens after a prompt of several, which goes another way than single tokens do."""
    model = llama.Model(path, capture)
    params = lib.llama_context_default_params()
    params.n_ctx = 64
    params.n_threads = params.n_threads_batch = 1
    context = lib.llama_init_from_model(model.handle, params)
    tokens, found = model.tokenize("The quick brown fox", True), []
    for _ in range(NUM_TOKENS):
        array = (lib.llama_token * len(tokens))(*tokens)
        assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens))) == 0
        logits = lib.llama_get_logits_ith(context, -1)
        tokens = [max(range(model.num_vocab), key=lambda token: float(logits[token]))]
        found += tokens
    return found


def main() -> None:
    capture = llama.start_backend()
    maps = Path("/proc/self/maps").read_text().splitlines()
    variants = {Path(line.split()[-1]).name for line in maps if "/libggml-cpu-" in line}
    if sys.argv[1] == "--quantize":
        quantize(*sys.argv[2:])
        return
    print(json.dumps({"variants": sorted(variants), "tokens": decode(Path(sys.argv[1]), capture) if variants else []}))


if __name__ == "__main__":
    main()

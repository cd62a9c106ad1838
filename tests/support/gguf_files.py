"""Writes small GGUF files: a bulky one with a valid header for downloads, and a tiny llama that really runs."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_ALIGNMENT = 32


def bulk_gguf(num_bytes: int, seed: int = 0) -> bytes:
    """Returns a valid GGUF file of exactly `num_bytes` (at least 256) with one tensor of random bytes."""
    name = b"filler"
    # Magic, version 3, one tensor, no metadata; then name, dimensions, type 24 (int8) and offset.
    head_bytes = 24 + 8 + len(name) + 4 + 8 + 4 + 8
    start = -(-head_bytes // _ALIGNMENT) * _ALIGNMENT
    tensor_bytes = num_bytes - start
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0)
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, tensor_bytes, 24, 0)
    rng = random.Random(seed)
    # In pieces: Python draws at most 256 MiB at once.
    pieces = [rng.randbytes(min(1 << 24, tensor_bytes - offset)) for offset in range(0, tensor_bytes, 1 << 24)]
    return head.ljust(start, b"\0") + b"".join(pieces)


def write_llama(
    path: Path,
    *,
    seed: int = 0,
    context_length: int = 2048,
    chat_template: str | None = None,
    general_type: str | None = None,
    printable: bool = True,
) -> Path:
    """Writes a llama that really runs: random F32 weights, 2 layers, one token per byte. Half a megabyte.

    Its text means nothing, but at temperature 0 it is a function of the prompt and the seed. `printable` keeps greedy text to
    ASCII letters; the end-of-text token is never the likeliest, so requests end at max_tokens or a stop string.
    """
    rng = np.random.default_rng(seed)
    num_embd, num_heads, num_layers, num_ff = 64, 4, 2, 128
    tokens = [*_byte_characters(), "ĠĠ", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    kinds = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 3
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    if general_type is not None:
        writer.add_type(general_type)
    writer.add_context_length(context_length)
    writer.add_embedding_length(num_embd)
    writer.add_block_count(num_layers)
    writer.add_feed_forward_length(num_ff)
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(num_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(num_embd // num_heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.asarray(rng.standard_normal((rows, columns)) * scale / columns**0.5, np.float32)

    output = matrix(len(tokens), num_embd, 4.0)
    wanted = set(range(ord("a"), ord("z") + 1)) | {ord(" ")} if printable else set(range(256))
    output[[index for index in range(len(tokens)) if index not in wanted]] = 0.0
    writer.add_tensor("token_embd.weight", matrix(len(tokens), num_embd, 8.0))
    for layer in range(num_layers):
        name = f"blk.{layer}"
        writer.add_tensor(f"{name}.attn_norm.weight", np.ones(num_embd, np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{name}.{part}.weight", matrix(num_embd, num_embd, 2.0))
        writer.add_tensor(f"{name}.ffn_norm.weight", np.ones(num_embd, np.float32))
        writer.add_tensor(f"{name}.ffn_gate.weight", matrix(num_ff, num_embd, 2.0))
        writer.add_tensor(f"{name}.ffn_up.weight", matrix(num_ff, num_embd, 2.0))
        writer.add_tensor(f"{name}.ffn_down.weight", matrix(num_embd, num_ff, 2.0))
    writer.add_tensor("output_norm.weight", np.ones(num_embd, np.float32))
    writer.add_tensor("output.weight", output)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_characters() -> list[str]:
    """Returns the character that stands for each byte in byte-level BPE vocabularies (GPT-2's bytes_to_unicode)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]

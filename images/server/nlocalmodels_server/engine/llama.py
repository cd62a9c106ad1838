"""The only module that imports llama_cpp: a model, its vocabulary and one context, over the low-level API."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp
import llama_cpp.llama_cpp as lib
import numpy as np

from nlocalmodels_server.engine.candidates import likeliest
from nlocalmodels_server.engine.sampling import SamplingParams
from nlocalmodels_server.engine.step import Copy, Cut, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PENALTY_WINDOW_TOKENS = 64
_ERROR_LEVEL = 4
_CONTINUED_LEVEL = 5
_NUM_WARM_UPS = 3
# llama_token_data of llama.h.
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class LoadError(Exception):
    """A file that llama.cpp does not load, with its own reason."""


class DecodeError(Exception):
    """llama_decode failed for another reason than a full cache."""


_callbacks: list[object] = []


class LogCapture:
    """Keeps llama.cpp's error lines: its functions return NULL and say why only in the log."""

    def __init__(self) -> None:
        self._last_level = 0
        self.errors: list[str] = []
        callback = lib.llama_log_callback(self._receive)
        # llama.cpp may call it for as long as the process lives.
        _callbacks.append(callback)
        lib.llama_log_set(callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _: object) -> None:
        level = self._last_level if level == _CONTINUED_LEVEL else level
        self._last_level = level
        if level == _ERROR_LEVEL:
            self.errors = [*self.errors[-9:], text.decode("utf-8", "replace").strip()]

    def reason(self, default: str) -> str:
        """Returns the first captured error without the name of the function that logged it."""
        if not self.errors:
            return default
        return self.errors[0].split(": ", 1)[-1].removeprefix("error loading model: ")


def start_backend() -> LogCapture:
    """Loads the fastest CPU backend that this machine can run. Comes before any other call of this module.

    It must go through the very libggml that libllama is linked to, since each copy has a registry of its own.
    """
    capture = LogCapture()
    folder = os.path.join(os.path.dirname(os.path.abspath(llama_cpp.__file__)), "lib")
    ggml = ctypes.CDLL(os.path.join(folder, "libggml.so"))
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path.restype = None
    ggml.ggml_backend_load_all_from_path(folder.encode())
    lib.llama_backend_init()
    return capture


class Model:
    """A loaded GGUF file and its vocabulary. Tokenizing is thread-safe."""

    def __init__(self, path: Path, capture: LogCapture) -> None:
        """Loads the weights.

        Raises:
            LoadError: with llama.cpp's reason.
        """
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._handle = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._handle:
            raise LoadError(capture.reason("llama.cpp gave no reason"))
        self._vocab = lib.llama_model_get_vocab(self._handle)
        self.num_vocab = lib.llama_vocab_n_tokens(self._vocab)
        self.trained_context_tokens = lib.llama_model_n_ctx_train(self._handle)
        self.size_bytes = lib.llama_model_size(self._handle)
        self._pieces: dict[int, bytes] = {}
        self._is_end: dict[int, bool] = {}

    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._handle, buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """Returns the model's own Jinja chat template, None if it has none."""
        template = lib.llama_model_chat_template(self._handle, None)
        return template.decode("utf-8", "replace") if template else None

    def can_generate(self) -> bool:
        return bool(lib.llama_model_has_decoder(self._handle)) and not lib.llama_model_has_encoder(self._handle)

    def kv_bytes_per_token(self) -> int:
        """Returns the cache bytes of one token, as if no layer had a sliding window: an upper bound."""
        num_heads = max(1, lib.llama_model_n_head(self._handle))
        head_dim = lib.llama_model_n_embd(self._handle) // num_heads
        layers = lib.llama_model_n_layer(self._handle)
        architecture = self.metadata("general.architecture") or ""
        key_length = self.metadata(f"{architecture}.attention.key_length")
        head_dim = int(key_length) if key_length and key_length.isdigit() else head_dim
        value_bytes = 4 if self.is_full_precision() else 2
        return int(2 * layers * lib.llama_model_n_head_kv(self._handle) * head_dim * value_bytes)

    def shares_partially(self) -> bool:
        """Whether a sequence's state can be cut. In recurrent models it is a sum over all its tokens."""
        return not lib.llama_model_is_recurrent(self._handle) and not lib.llama_model_is_hybrid(self._handle)

    def is_full_precision(self) -> bool:
        """Whether all weights are F32, which is asked for to get exact results rather than fast ones."""
        return bool(lib.llama_model_ftype(self._handle) == lib.LLAMA_FTYPE_ALL_F32)

    def metadata(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(4096)
        length = lib.llama_model_meta_val_str(self._handle, key.encode(), buffer, 4096)
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def token_text(self, which: str) -> str:
        """Returns the text of the `bos` or `eos` token, empty if the vocabulary has none."""
        token = lib.llama_vocab_bos(self._vocab) if which == "bos" else lib.llama_vocab_eos(self._vocab)
        if token < 0:
            return ""
        text = lib.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace") if text else ""

    def tokenize(self, text: str, add_special: bool, parse_special: bool = True) -> list[int]:
        """Returns the tokens; `add_special` puts the begin token in front if the model wants one."""
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 8
        tokens = (lib.llama_token * capacity)()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, capacity, add_special, parse_special)
        if count < 0:
            capacity = -count
            tokens = (lib.llama_token * capacity)()
            count = lib.llama_tokenize(self._vocab, data, len(data), tokens, capacity, add_special, parse_special)
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """Returns a token's bytes, nothing for control tokens."""
        piece = self._pieces.get(token)
        if piece is None:
            buffer = ctypes.create_string_buffer(64)
            length = lib.llama_token_to_piece(self._vocab, token, buffer, 64, 0, False)
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = lib.llama_token_to_piece(self._vocab, token, buffer, -length, 0, False)
            piece = self._pieces[token] = buffer.raw[:length]
        return piece

    def is_end(self, token: int) -> bool:
        """Whether a token ends generation."""
        end = self._is_end.get(token)
        if end is None:
            end = self._is_end[token] = bool(lib.llama_vocab_is_eog(self._vocab, token))
        return end

    def sampler(self, params: SamplingParams) -> Sampler:
        return Sampler(self.num_vocab, params)

    def new_context(self, params: ContextParams, capture: LogCapture) -> Context:
        """Raises LoadError when the memory for it is not there."""
        capture.errors.clear()
        return Context(self._handle, params, self.is_full_precision(), capture)


@dataclass(frozen=True, slots=True)
class ContextParams:
    """`num_slots` are those of running and of kept sequences, and the most rows of a step that may yield a token."""

    num_cells: int
    num_slots: int
    num_batch_tokens: int
    num_threads: int
    num_prefill_threads: int | None = None
    kv_type: str | None = None
    flash_attention: bool | None = None


class Context:
    """The key-value cache of all sequences, and one reused batch. Belongs to one thread."""

    def __init__(self, model: int, params: ContextParams, is_full_precision: bool, capture: LogCapture) -> None:
        native = lib.llama_context_default_params()
        native.n_ctx = params.num_cells
        native.n_batch = native.n_ubatch = params.num_batch_tokens
        native.n_seq_max = params.num_slots
        # Rows of logits of the whole vocabulary. The default is num_batch_tokens; fewer than sequences, and llama.cpp aborts.
        native.n_outputs_max = params.num_slots
        # More than one token in a step counts as a batch, so both figures matter to decoding.
        native.n_threads = params.num_threads
        native.n_threads_batch = params.num_prefill_threads or params.num_threads
        # One pool of cells for all: sequences of any length share it, and copying a prefix only edits metadata.
        native.kv_unified = True
        # Layers with a sliding window keep all cells too, or what has left the window of one could be given to no other.
        native.swa_full = True
        native.no_perf = True
        if is_full_precision:
            # With these, what a request gets does not depend on what runs beside it (docs/decisions/0004-exact-f32.md).
            native.type_k = native.type_v = lib.GGML_TYPE_F32
            native.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if params.kv_type is not None:
            native.type_k = native.type_v = getattr(lib, f"GGML_TYPE_{params.kv_type.upper()}")
        if params.flash_attention is not None:
            native.flash_attn_type = int(params.flash_attention)  # LLAMA_FLASH_ATTN_TYPE_DISABLED or _ENABLED
        self._handle = lib.llama_init_from_model(model, native)
        if not self._handle:
            raise LoadError(capture.reason("no context could be made; give the pod more memory or set CONTEXT_TOKENS lower"))
        self._memory = lib.llama_get_memory(self._handle)
        # 0 without a sliding window.
        self._num_window_tokens = lib.llama_model_n_swa(model)
        self._num_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.num_cells = lib.llama_n_ctx(self._handle)
        self._capacity = params.num_batch_tokens
        self._batch = lib.llama_batch_init(params.num_batch_tokens, 0, 1)
        for row in range(params.num_batch_tokens):
            self._batch.n_seq_id[row] = 1

    def warm_up(self) -> float:
        """Computes one token, again and again: weights are paged in, and a file that cannot compute fails here.

        Returns:
            The seconds that a token takes.

        Raises:
            LoadError: it does not compute.
        """
        batch, seconds = self._batch, []
        batch.token[0], batch.pos[0], batch.logits[0], batch.n_tokens = 0, 0, 1, 1
        batch.seq_id[0][0] = 0
        for _ in range(_NUM_WARM_UPS):
            started = time.perf_counter()
            if lib.llama_decode(self._handle, batch) != 0:
                raise LoadError("a first decode fails")
            seconds.append(time.perf_counter() - started)
            self.cut(0, 0)
        return min(seconds)

    def decode(self, works: Tokens[Work]) -> list[int] | None:
        """Computes one step.

        Returns:
            For each work that yields a token, in order, the batch row that holds its logits; those of its draft follow it. None
            when the cache is full, with nothing computed.

        Raises:
            DecodeError: the step failed; the sequences in it are lost.
        """
        batch, row, rows = self._batch, 0, []
        tokens, positions, slots, outputs = batch.token, batch.pos, batch.seq_id, batch.logits
        for work in works:
            sequence = work.sequence
            first = sequence.num_computed
            new = (*sequence.tokens[first : first + work.num_tokens], *work.draft)
            for position, token in enumerate(new, first):
                tokens[row] = token
                positions[row] = position
                slots[row][0] = sequence.slot
                outputs[row] = 0
                row += 1
            if work.yields_token:
                first_output = row - 1 - len(work.draft)
                for output in range(first_output, row):
                    outputs[output] = 1
                rows.append(first_output)
        batch.n_tokens = row
        code = lib.llama_decode(self._handle, batch)
        if code == 1:
            return None
        if code != 0:
            raise DecodeError(f"llama_decode answered {code}")
        return rows

    def sample(self, sampler: Sampler, row: int) -> int:
        """Chooses the next token from a row of the last step."""
        if sampler.num_candidates:
            address = ctypes.addressof(lib.llama_get_logits_ith(self._handle, row).contents)
            logits = np.frombuffer((ctypes.c_float * self._num_vocab).from_address(address), dtype=np.float32)
            if (token := sampler.choose(logits)) is not None:
                return token
        return int(lib.llama_sampler_sample(sampler.handle, self._handle, row))

    def move(self, moves: Tokens[Copy | Cut]) -> None:
        """Shares and frees cells, in the order given.

        Raises:
            DecodeError: a state that cannot be cut, which the scheduler must not ask for.
        """
        for move in moves:
            if isinstance(move, Copy):
                lib.llama_memory_seq_cp(self._memory, move.source, move.slot, 0, move.num_tokens)
            else:
                self.cut(move.slot, move.num_tokens)

    def cut(self, slot: int, num_tokens: int) -> None:
        """Frees a slot's cells after the first `num_tokens`. Removing all never fails (llama.h).

        Raises:
            DecodeError: the model is one whose state cannot be cut.
        """
        if not lib.llama_memory_seq_rm(self._memory, slot, num_tokens or -1, -1):
            raise DecodeError(f"slot {slot} cannot be cut to {num_tokens} tokens")

    def can_share(self, slot: int, num_tokens: int) -> bool:
        """Whether a slot still has all cells of its first `num_tokens` that a continuation looks at."""
        return bool(lib.llama_memory_seq_pos_min(self._memory, slot) <= max(0, num_tokens - self._num_window_tokens))


class Sampler:
    """A chain in C. Cheap filters come first, so that nothing sorts the whole vocabulary."""

    def __init__(self, num_vocab: int, params: SamplingParams) -> None:
        chain_params = lib.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        self.handle = lib.llama_sampler_chain_init(chain_params)
        # How many of the likeliest tokens the chain looks at, besides those with a bias. 0: at all, since it may move any.
        self.num_candidates = 0
        self._biased = np.unique(np.array([token for token, _ in params.logit_bias], dtype=np.intp))
        if not params.has_penalties and (params.is_greedy or params.top_k > 0):
            # A bias may push away as many of the likeliest.
            self.num_candidates = (1 if params.is_greedy else params.top_k) + len(self._biased)
        parts = []
        if params.logit_bias:
            biases = (lib.llama_logit_bias * len(params.logit_bias))()
            for index, (token, bias) in enumerate(params.logit_bias):
                biases[index].token, biases[index].bias = token, bias
            parts.append(lib.llama_sampler_init_logit_bias(num_vocab, len(params.logit_bias), biases))
        if params.has_penalties:
            parts.append(
                lib.llama_sampler_init_penalties(
                    num_vocab,
                    _PENALTY_WINDOW_TOKENS,
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                )
            )
        if params.is_greedy:
            parts.append(lib.llama_sampler_init_greedy())
        else:
            if params.top_k > 0:
                parts.append(lib.llama_sampler_init_top_k(params.top_k))
            if params.top_p < 1.0:
                parts.append(lib.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p > 0.0:
                parts.append(lib.llama_sampler_init_min_p(params.min_p, 1))
            parts.append(lib.llama_sampler_init_temp(params.temperature))
            seed = int.from_bytes(os.urandom(4), "little") if params.seed is None else params.seed & 0xFFFFFFFF
            # The highest value means "draw one" to llama.cpp.
            parts.append(lib.llama_sampler_init_dist(min(seed, 0xFFFFFFFE)))
        for part in parts:
            lib.llama_sampler_chain_add(self.handle, part)

    def choose(self, logits: NDArray[np.float32]) -> int | None:
        """Chooses a token as the chain does, without handing it all others: it would copy and scan them.

        Returns:
            None if it has to be the long way.
        """
        if self.num_candidates == 1:
            return int(logits.argmax())
        tokens = likeliest(logits, self.num_candidates)
        if tokens is None:
            return None
        if len(self._biased):
            tokens = np.union1d(tokens, self._biased)
        data = np.zeros(len(tokens), dtype=_TOKEN_DATA)
        data["id"] = tokens
        data["logit"] = logits[tokens]
        pointer = data.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data=pointer, size=len(tokens), selected=-1, sorted=False)
        lib.llama_sampler_apply(self.handle, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(self.handle, token)
        return token

    def close(self) -> None:
        lib.llama_sampler_free(self.handle)

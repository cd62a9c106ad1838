"""The cache of all sequences of a model, and the steps that are computed over it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import numpy as np

from nlocalmodels_server.engine.llama import LoadError, LogCapture, Model, lib
from nlocalmodels_server.engine.sampler import Sampler
from nlocalmodels_server.engine.step import Copy, Cut, Work

_NUM_WARM_UPS = 3


class DecodeError(Exception):
    """llama_decode failed for another reason than a full cache."""


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

    def __init__(self, model: Model, params: ContextParams, capture: LogCapture) -> None:
        """Raises LoadError when the memory for it is not there."""
        capture.errors.clear()
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
        if params.kv_type is not None:
            native.type_k = native.type_v = getattr(lib, f"GGML_TYPE_{params.kv_type.upper()}")
        if params.flash_attention is not None:
            native.flash_attn_type = int(params.flash_attention)  # LLAMA_FLASH_ATTN_TYPE_DISABLED or _ENABLED
        self._handle = lib.llama_init_from_model(model.handle, native)
        if not self._handle:
            raise LoadError(capture.reason("no context could be made; give the pod more memory or set CONTEXT_TOKENS lower"))
        self._memory = lib.llama_get_memory(self._handle)
        # 0 without a sliding window.
        self._num_window_tokens = lib.llama_model_n_swa(model.handle)
        self._num_vocab = model.num_vocab
        self.num_cells = lib.llama_n_ctx(self._handle)
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

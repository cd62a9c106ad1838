"""The only module that imports llama_cpp, of which others take `lib`: a model and its vocabulary, over the low-level API."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import llama_cpp
from llama_cpp import llama_cpp as lib

_ERROR_LEVEL = 4
_CONTINUED_LEVEL = 5


__all__ = ["LoadError", "LogCapture", "Model", "lib", "start_backend"]


class LoadError(Exception):
    """A file that llama.cpp does not load, with its own reason."""


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


def has_amx() -> bool:
    """Whether the backend in use multiplies by AMX, Intel's matrix instructions."""
    return b"AMX_INT8 = 1" in lib.llama_print_system_info()


class Model:
    """A loaded GGUF file and its vocabulary. Tokenizing is thread-safe."""

    def __init__(self, path: Path, capture: LogCapture, is_mapped: bool = True) -> None:
        """Loads the weights.

        Args:
            is_mapped: whether the file stays mapped, for the weights that are used as they are; else they are copied.

        Raises:
            LoadError: with llama.cpp's reason.
        """
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        if not is_mapped:
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self.handle = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise LoadError(capture.reason("llama.cpp gave no reason"))
        self._vocab = lib.llama_model_get_vocab(self.handle)
        self.num_vocab = lib.llama_vocab_n_tokens(self._vocab)
        self.trained_context_tokens = lib.llama_model_n_ctx_train(self.handle)
        self.size_bytes = lib.llama_model_size(self.handle)
        self._pieces: dict[int, bytes] = {}
        self._is_end: dict[int, bool] = {}

    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.handle, buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """Returns the model's own Jinja chat template, None if it has none."""
        template = lib.llama_model_chat_template(self.handle, None)
        return template.decode("utf-8", "replace") if template else None

    def can_generate(self) -> bool:
        return bool(lib.llama_model_has_decoder(self.handle)) and not lib.llama_model_has_encoder(self.handle)

    def kv_bytes_per_token(self) -> int:
        """Returns the cache bytes of one token, as if no layer had a sliding window: an upper bound."""
        num_heads = max(1, lib.llama_model_n_head(self.handle))
        head_dim = lib.llama_model_n_embd(self.handle) // num_heads
        layers = lib.llama_model_n_layer(self.handle)
        architecture = self.metadata("general.architecture") or ""
        key_length = self.metadata(f"{architecture}.attention.key_length")
        head_dim = int(key_length) if key_length and key_length.isdigit() else head_dim
        value_bytes = 4 if self.is_full_precision() else 2
        return int(2 * layers * lib.llama_model_n_head_kv(self.handle) * head_dim * value_bytes)

    def shares_partially(self) -> bool:
        """Whether a sequence's state can be cut. In recurrent models it is a sum over all its tokens."""
        return not lib.llama_model_is_recurrent(self.handle) and not lib.llama_model_is_hybrid(self.handle)

    def is_full_precision(self) -> bool:
        """Whether all weights are F32, which is asked for to get exact results rather than fast ones."""
        return bool(lib.llama_model_ftype(self.handle) == lib.LLAMA_FTYPE_ALL_F32)

    def metadata(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(4096)
        length = lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, 4096)
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

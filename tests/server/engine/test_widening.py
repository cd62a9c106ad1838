"""Weights of Q5_0 kept as Q8_0: the same values, and nothing else of the file touched."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from nlocalmodels_server.engine import llama, widening
from nlocalmodels_server.engine.context import Context, ContextParams
from nlocalmodels_server.engine.sampling import SamplingParams
from nlocalmodels_server.engine.sequence import Sequence
from nlocalmodels_server.engine.step import Work
from nlocalmodels_server.engine.text import TextStream
from nlocalmodels_server.engine.widening import Widened, q8_0_of, widen
from nlocalmodels_server.workers.loading import load
from nlocalmodels_server.workers.protocol import LoadOptions
from support.gguf_files import write_llama

TEXT = "The harbour master counted the boats that came in before noon, and wrote each name in a green book."


def quantized(path: Path, alignment: int = 32) -> Path:
    """Writes a small model with matrices in Q5_0, but for those that come by rows of another number, and one in F16."""
    reader = gguf.GGUFReader(write_llama(path.with_name("full.gguf")))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub_type = field.types[1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        data = tensor.data
        if "attn_q" in tensor.name:
            writer.add_tensor(tensor.name, np.asarray(data, np.float16))
        elif data.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q5_0
            writer.add_tensor(tensor.name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextlib.contextmanager
def widened(path: Path) -> Iterator[Widened]:
    found = widen(path)
    assert found is not None
    with contextlib.closing(found):
        yield found


def values(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    return {t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(path).tensors}


def test_blocks_hold_the_same_values_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (5000, 22), dtype=np.uint8)
    blocks[:, :2] = rng.standard_normal((5000, 1)).astype(np.float16).view(np.uint8)
    wide = q8_0_of(blocks)
    assert wide.shape == (5000, 34)
    q5_0, q8_0 = gguf.GGMLQuantizationType.Q5_0, gguf.GGMLQuantizationType.Q8_0
    assert np.array_equal(gguf.dequantize(wide, q8_0), gguf.dequantize(blocks, q5_0))


@pytest.mark.parametrize("alignment", [32, 256])
def test_copy_differs_in_the_type_of_the_slow_tensors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alignment: int
) -> None:
    monkeypatch.setattr(widening, "_PIECE_BLOCKS", 100)
    path = quantized(tmp_path / "m.gguf", alignment)
    with widened(path) as copy:
        (tmp_path / "copy.gguf").write_bytes(copy.path.read_bytes())
        before, after = values(path), values(tmp_path / "copy.gguf")
        assert copy.num_tensors == sum(kind == "Q5_0" for kind, _ in before.values()) > 10
    assert {name: kind.replace("Q5_0", "Q8_0") for name, (kind, _) in before.items()} == {
        name: kind for name, (kind, _) in after.items()
    }
    assert all(np.array_equal(before[name][1], after[name][1]) for name in before)
    one, other = (gguf.GGUFReader(file) for file in (path, tmp_path / "copy.gguf"))
    assert [(f.name, f.contents()) for f in one.fields.values()] == [(f.name, f.contents()) for f in other.fields.values()]


def test_nothing_is_copied_where_nothing_is_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert widen(write_llama(tmp_path / "full.gguf")) is None
    path = quantized(tmp_path / "m.gguf")
    monkeypatch.setattr(widening, "MAX_MORE_BYTES", 10_000)
    assert widen(path) is None


def test_split_files_stay_as_they_are(tmp_path: Path) -> None:
    path = quantized(tmp_path / "m.gguf")
    key, other = b"general.alignment", b"split.tensors.cou"
    assert len(key) == len(other)
    path.write_bytes(path.read_bytes().replace(key, other, 1))
    assert widen(path) is None


def test_broken_files_are_left_to_llama_cpp(tmp_path: Path) -> None:
    whole = quantized(tmp_path / "m.gguf").read_bytes()
    rng, path = random.Random(3), tmp_path / "broken.gguf"
    for length in (0, 3, 24, *(rng.randrange(len(whole)) for _ in range(30))):
        path.write_bytes(whole[:length])
        assert widen(path) is None
    head = whole.index(b"output.weight") + 100
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            broken[rng.randrange(head)] = rng.choice((0, 1, 255, rng.randrange(256)))
        path.write_bytes(broken)
        found = widen(path)
        if found is not None:
            with contextlib.closing(found):
                assert found.path.stat().st_size < 3 * len(whole)


def logits(model: llama.Model, capture: llama.LogCapture) -> np.ndarray:
    """Returns the logits after each token of the text, one step each."""
    context = Context(model, ContextParams(512, 1, 64, 2), capture)
    sequence = Sequence(0, model.tokenize(TEXT, add_special=True), 1, SamplingParams(), TextStream([]))
    sequence.slot = 0
    rows = []
    for end in range(1, len(sequence.tokens) + 1):
        part = Sequence(0, sequence.tokens[:end], 1, SamplingParams(), TextStream([]))
        part.slot, part.num_computed = 0, end - 1
        found = context.decode([Work(part, 1)])
        assert found is not None
        pointer = llama.lib.llama_get_logits_ith(context._handle, found[0])
        rows.append(np.ctypeslib.as_array(pointer, (model.num_vocab,)).copy())
    return np.array(rows)


def test_real_model_says_the_same_within_the_noise_of_kernels(embedded_model_path: Path) -> None:
    capture = llama.start_backend()
    plain = logits(llama.Model(embedded_model_path, capture), capture)
    with widened(embedded_model_path) as copy:
        model = llama.Model(copy.path, capture, is_mapped=False)
    wide = logits(model, capture)
    difference = np.abs(plain - wide)
    assert difference.mean() < 0.2
    assert difference.max() < 2.0
    assert (plain.argmax(axis=1) == wide.argmax(axis=1)).mean() > 0.9


@pytest.mark.parametrize(
    ("wished", "has_amx", "weights"),
    [
        (None, True, "81 of Q5_0 as Q8_0"),
        (None, False, "as in the file"),
        (True, False, "81 of Q5_0 as Q8_0"),
        (False, True, "as in the file"),
    ],
)
def test_choice_follows_the_processor_unless_it_is_told(
    embedded_model_path: Path, monkeypatch: pytest.MonkeyPatch, wished: bool | None, has_amx: bool, weights: str
) -> None:
    monkeypatch.setattr(llama, "has_amx", lambda: has_amx)
    options = LoadOptions(2, 1, context_tokens=256, widen_weights=wished)
    loaded = load(embedded_model_path, options, lambda _: None, contextlib.nullcontext(), lambda: None)
    assert loaded.info["weights"] == weights
    assert ("as told" if wished is not None else "AMX") in loaded.reasons["weights"]

from __future__ import annotations

import pytest

from nlocalmodels_server.engine.text import TextStream, held_back


def feed(stream: TextStream, *pieces: bytes) -> list[str]:
    texts = []
    for piece in pieces:
        texts.append(stream.push(piece))
        if stream.is_stopped:
            return texts
    return [*texts, stream.finish()]


def test_text_stream_never_splits_a_character() -> None:
    euro = "€".encode()
    assert feed(TextStream([]), b"a" + euro[:1], euro[1:2], euro[2:] + b"b") == ["a", "", "€b", ""]


def test_text_stream_replaces_what_is_no_utf8() -> None:
    assert "".join(feed(TextStream([]), b"a\xff", b"b\xe2\x82")) == "a\ufffdb\ufffd"


def test_text_stream_holds_back_what_may_become_a_stop_string() -> None:
    stream = TextStream(["STOP"])
    assert [stream.push(piece) for piece in (b"x S", b"TO", b"RY")] == ["x ", "", "STORY"]


def test_text_stream_stops_before_the_earliest_stop_string() -> None:
    stream = TextStream(["END", "\n\n"])
    assert stream.push(b"one\n\ntwo END") == "one"
    assert stream.is_stopped


def test_text_stream_finds_a_stop_string_across_pieces() -> None:
    stream = TextStream(["\nUser:"])
    assert "".join(feed(stream, b"hi\n", b"Us", b"er", b": more")) == "hi"
    assert stream.is_stopped


def test_text_stream_finish_gives_out_what_was_held() -> None:
    stream = TextStream(["STOP"])
    assert stream.push(b"ab ST") == "ab "
    assert stream.finish() == "ST"


@pytest.mark.parametrize(
    ("text", "stop", "expected"), [("abc", "cd", 1), ("aab", "aabc", 3), ("abab", "abac", 2), ("x", "y", 0), ("", "ab", 0)]
)
def test_held_back_is_the_longest_overlap(text: str, stop: str, expected: int) -> None:
    assert held_back(text, stop) == expected

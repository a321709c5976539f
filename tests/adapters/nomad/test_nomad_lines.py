"""Lines come out the same, however the bytes were cut on the way."""

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from worker.adapters.nomad.lines import KEPT_BYTES, LineCutter, Oversize


def cut(chunks: list[bytes], limit: int = 10_000) -> list[bytes | Oversize]:
    cutter = LineCutter(limit)
    return [line for chunk in chunks for line in cutter.feed(chunk)]


@given(
    st.lists(st.binary(max_size=30) | st.binary(min_size=60, max_size=200)),
    st.lists(st.integers(0, 1000)),
    st.integers(KEPT_BYTES, 150),
)
def test_however_the_bytes_are_cut_the_lines_are_the_same(
    lines: list[bytes], cuts: list[int], limit: int
) -> None:
    whole = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    edges = [0, *sorted(edge for edge in cuts if edge < len(whole)), len(whole)]
    chunks = [whole[start:end] for start, end in itertools.pairwise(edges)]

    expected = [
        line if len(line) <= limit else Oversize(line[:KEPT_BYTES], line[-KEPT_BYTES:])
        for line in whole.split(b"\n")
        if line
    ]

    assert cut(chunks, limit) == expected


def test_an_unfinished_line_waits_for_its_end() -> None:
    cutter = LineCutter(100)

    assert list(cutter.feed(b'{"a"')) == []
    assert list(cutter.feed(b":1}\n{}")) == [b'{"a":1}']
    assert list(cutter.feed(b"\n\n")) == [b"{}"]


def test_the_line_after_one_that_is_too_long_is_read_again() -> None:
    head, tail = b"h" * KEPT_BYTES, b"t" * KEPT_BYTES

    lines = cut([head, b"x" * 500, b"y" * 500, tail + b"\n", b"{}\n"], limit=100)

    assert lines == [Oversize(head, tail), b"{}"]


def test_a_line_in_small_chunks_takes_time_linear_in_its_size() -> None:
    def seconds(chunks: int) -> float:
        started = time.process_time()
        assert len(cut([b"x" * 256] * chunks + [b"\n"], limit=2**30)) == 1
        return time.process_time() - started

    small = min(seconds(4_000) for _ in range(3))
    large = min(seconds(64_000) for _ in range(3))

    assert large < 16 * small * 6 + 0.1

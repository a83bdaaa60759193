"""A small number of the fuzzer's inputs; ten thousand a parser with `make torture`."""

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from modelagent.errors import ModelError
from modelagent.inference.samples import Samples
from torture.fuzz import PARSERS, run
from torture.parser import Parser


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_nearly_right_bytes_are_refused_in_the_parsers_own_words(parser: Parser) -> None:
    tried, problem = run(parser, 300, seed=1)
    assert problem == ""
    assert tried >= 300


def test_a_parser_that_raises_something_else_is_found() -> None:
    honest = PARSERS["command"]
    broken = Parser(honest.seeds, lambda: contextlib.nullcontext(_picky))
    assert "KeyError" in run(broken, 200, seed=1)[1]


def _picky(data: bytes) -> None:
    if data not in PARSERS["command"].seeds():
        raise KeyError


def test_a_deflated_stream_that_refers_before_its_beginning_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, input_0=np.ones((4, 4), np.float32), labels=np.arange(4))
    data = bytearray(buffer.getvalue())
    with zipfile.ZipFile(buffer) as archive:
        begin = archive.infolist()[0].header_offset
    body = begin + 30 + int.from_bytes(data[begin + 26 : begin + 28], "little")
    body += int.from_bytes(data[begin + 28 : begin + 30], "little")
    data[body : body + 4] = b"\xff\xff\xff\xff"
    path = tmp_path / "canary.npz"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="the arrays"):
        Samples(path, 1)


@pytest.mark.parametrize(
    ("parser", "old", "new"),
    [
        ("health", b'"frames": 90', b'"frames": 1' + b"0" * 400),
        ("health", b'"gap_s": 0.1', b'"gap_s": 1' + b"0" * 400),
        ("health", b'"bounds": [0.5', b'"bounds": [1' + b"0" * 400),
        ("health", b'"bounds": [1000', b'"bounds": [1e999'),
        ("health", b'"counts": [80', b'"counts": [1e999'),
        ("health", b'"version": "1.0.0"', b'"version": "\\ud800"'),
        ("health", b'"reason": "crash"', b'"reason": "\\ud800"'),
        ("health", b'"source": {', b'"source": [], "other": {'),
        ("health", b'"running": {', b'"running": 7, "other": {'),
        ("labels", b'"label": 7', b'"label": 7e999'),
        ("frame", b"'fortran_order': False", b"'fortran_order': (    "),
        ("frame", b"[[1, 2, 3]", b"[[1e308, 2, 3]"),
    ],
)
def test_what_the_fuzzer_has_found_before(parser: str, old: bytes, new: bytes) -> None:
    seeds = [data for data in PARSERS[parser].seeds() if old in data]
    assert seeds, "no true input has this piece any more"
    with PARSERS[parser].open() as take:
        for data in seeds:
            take(data.replace(old, new))

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

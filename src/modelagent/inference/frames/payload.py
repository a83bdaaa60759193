"""What came over a wire or lies in a file, as arrays.

This file knows the forms: .npy, .npz, pictures, JSON, raw numbers. It does not know how the bytes came.

    payload = read(data, options)            # SourceError `payload`: no form that we know, or one that lies
    payload.arrays, payload.id               # one array per model input; the sender's name for the frame, or ""

JSON is a nested list (one input), or {"id": "part-7", "inputs": [[...], [...]]}; its numbers become `options.dtype`, as
raw bytes do, which also need `options.shape`. Raw numbers may happen to begin like another form: what cannot be read as
that form and has a raw frame's length is one. Sizes are checked before anything is allocated, and what an archive says
of itself is not believed; nothing is unpickled.
"""

import io
import json
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from modelagent.errors import SourceError
from modelagent.inference.frames import SourceOptions

_PIXELS: Final = 64_000_000  # of one picture: a small file may unfold into a great one
_UNFOLD: Final = 16  # how many times its limit a packed frame may become
_PICTURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"GIF8")
# What the readers of archives, pictures and numbers raise for bytes that somebody has damaged, or made up.
_DAMAGE: Final = (
    *(ValueError, KeyError, TypeError, OSError, MemoryError, ArithmeticError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
_MAX_ID: Final = 200  # characters
_INPUTS: Final = 256  # of one frame
_PACKED: Final = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
)  # as numpy writes; of the others zipfile unpacks all at once
_FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")  # Pillow knows many more, some of them programs
PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SUFFIXES: Final = (".npy", ".npz", ".json", *PICTURE_SUFFIXES)


class Payload(NamedTuple):
    """One frame's content."""

    arrays: tuple[npt.NDArray[Any], ...]
    id: str


def read(data: bytes, options: SourceOptions) -> Payload:
    """The arrays in `data`.

    Raises:
        SourceError: `payload`.
    """
    if len(data) > options.max_bytes:
        raise bad(f"{len(data)} bytes, at most {options.max_bytes} are taken; raise source.max_mb")
    try:
        return _read(data, options)
    except SourceError:
        if options.shape and len(data) == raw_length(options):
            return Payload((raw(data, options),), "")
        raise


def _read(data: bytes, options: SourceOptions) -> Payload:
    try:
        if data.startswith(npy.MAGIC_PREFIX):
            array, _ = read_npy(memoryview(data))
            return Payload((array,), "")
        if data.startswith(b"PK\3\4"):
            return Payload(_archive(data, options), "")
        if data.startswith(_PICTURES):
            return Payload((_picture(data),), "")
        if data[:1] in (b"[", b"{"):
            return _json(data, options)
        return Payload((raw(data, options),), "")
    except SourceError:
        raise
    except EOFError as error:
        raise bad("cut short: the .npy ends before its last number") from error
    except RecursionError as error:
        raise bad("JSON that is nested too deeply") from error
    except _DAMAGE as error:
        raise bad(f"not readable: {error}") from error


def read_npy(data: memoryview) -> tuple[npt.NDArray[Any], int]:
    """The array at the beginning of `data`, and the bytes that it took.

    Raises:
        ValueError: it is damaged or holds objects. EOFError: there is not all of it yet.
    """
    # The header is at most 64 KiB (numpy.lib.format); only it is copied.
    head = io.BytesIO(bytes(data[: 1 << 16]))
    try:
        version = npy.read_magic(head)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = reader(head)
    except ValueError as error:
        if "EOF" in str(error) and len(data) < 1 << 16:
            raise EOFError from error
        raise
    except tokenize.TokenError as error:  # numpy reads the header of old files as a Python expression
        raise ValueError("its header cannot be read") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    length = math.prod(shape) * dtype.itemsize
    end = head.tell() + length
    if len(data) < end:
        raise EOFError
    flat = np.frombuffer(bytes(data[head.tell() : end]), dtype=dtype)
    return flat.reshape(shape, order="F" if fortran else "C"), end


def _archive(data: bytes, options: SourceOptions) -> tuple[npt.NDArray[Any], ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > options.max_bytes * _UNFOLD:
            raise bad(f"it unfolds into more than {options.max_bytes * _UNFOLD} bytes; raise source.max_mb")
        members = {member.filename: member for member in archive.infolist()}
        arrays: list[npt.NDArray[Any]] = []
        while (member := members.get(f"input_{len(arrays)}.npy")) is not None:
            if member.compress_type not in _PACKED or len(arrays) == _INPUTS:
                raise bad(f"an archive with a member {member.filename} as numpy never writes it")
            with archive.open(member) as file:
                unpacked = file.read(member.file_size)  # so many and no more: the rest may be without end
            array, _ = read_npy(memoryview(unpacked))
            arrays.append(array)
    if not arrays:
        raise bad("an archive without input_0")
    return tuple(arrays)


def _picture(data: bytes) -> npt.NDArray[Any]:
    try:
        from PIL import Image  # noqa: PLC0415 - an extra, and only for pictures
    except ImportError as error:
        raise bad("a picture, and Pillow is not installed: pip install 'modelagent[images]'") from error
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.width * picture.height > _PIXELS:
                raise bad(f"a picture of {picture.width}x{picture.height}, at most {_PIXELS} pixels are taken")
            # Grey stays grey, with its depth; everything else becomes red, green and blue.
            if picture.mode not in {"L", "I;16", "F", "RGB"}:
                return np.asarray(picture.convert("RGB"))
            return np.asarray(picture)
    except SourceError:
        raise
    except Exception as error:  # whatever a decoder makes of bytes that somebody has damaged: it is this frame's fault
        raise bad(f"a damaged picture: {error}") from error


def _json(data: bytes, options: SourceOptions) -> Payload:
    document = json.loads(data)
    name = ""
    inputs: list[Any] = [document]
    if isinstance(document, dict):
        name = spell(str(document.get("id", ""))[:_MAX_ID])
        inputs = document["inputs"]
        if not isinstance(inputs, list):
            raise bad('{"inputs": ...} that is no list')
    arrays = []
    for item in inputs:
        with np.errstate(over="raise", invalid="raise"):  # a number that is none in this dtype is no frame
            array = np.asarray(item, dtype=options.dtype)
        if options.shape and len(inputs) == 1 and array.size == math.prod(options.shape):
            array = array.reshape(options.shape)
        arrays.append(array)
    return Payload(tuple(arrays), name)


def raw(data: bytes, options: SourceOptions) -> npt.NDArray[Any]:
    """A raw frame; SourceError when the length is another, or no shape is set."""
    if not options.shape:
        raise bad("neither .npy, .npz, a picture nor JSON; for raw numbers set source.shape and source.dtype")
    wanted = raw_length(options)
    if len(data) != wanted:
        raise bad(f"{len(data)} bytes, a raw frame of {options.dtype}{list(options.shape)} has {wanted}")
    return np.frombuffer(data, dtype=options.dtype).reshape(options.shape)


def spell(name: str) -> str:
    """A name as every sink can write it: JSON and file names may hold half a character, which becomes an escape."""
    return name.encode("utf-8", "backslashreplace").decode()


def raw_length(options: SourceOptions) -> int:
    """Bytes of a raw frame."""
    return math.prod(options.shape) * np.dtype(options.dtype).itemsize


def bad(what: str) -> SourceError:
    """A payload that cannot be taken."""
    return SourceError(f"the frame is {what}", code="payload")

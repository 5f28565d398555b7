"""Reads a TFRecord of one tf.train.Example, without TensorFlow.

Sources: the TFRecord format (tensorflow.org/tutorials/load_data/tfrecord: length, CRC-32C of it masked, data, masked
CRC-32C), tensorflow/core/example/feature.proto, and protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_FLOAT_LIST, _INT64_LIST = 2, 3
"""Fields of a Feature; field 1, a list of bytes, is left out."""


def read_example(data: bytes) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    """The numeric features of the first record of a TFRecord file, by name, each [values].

    Raises:
        ValueError: the bytes are no TFRecord, are damaged, or hold something else.
    """
    features: dict[str, NDArray[np.float64] | NDArray[np.int64]] = {}
    for number, message in _fields(_record(data)):
        for entry_number, entry in _fields(message) if number == 1 and isinstance(message, bytes) else ():
            if entry_number == 1 and isinstance(entry, bytes):
                key, values = _entry(entry)
                if values is not None:
                    features[key] = values
    return features


def _record(data: bytes) -> bytes:
    if len(data) < 16:
        raise ValueError("it is too short")
    (length,) = struct.unpack_from("<Q", data)
    record = data[12 : 12 + length]
    if len(record) != length or len(data) < 16 + length:
        raise ValueError("it breaks off, or is no TFRecord")
    checksums = struct.unpack_from("<I", data, 8)[0], struct.unpack_from("<I", data, 12 + length)[0]
    if checksums != (_masked_crc32c(data[:8]), _masked_crc32c(record)):
        raise ValueError("its checksum is wrong")
    return record


def _entry(entry: bytes) -> tuple[str, NDArray[np.float64] | NDArray[np.int64] | None]:
    """A name and its values; None for a list of bytes."""
    parts = dict(_fields(entry))
    key, feature = parts.get(1, b""), parts.get(2, b"")
    if not isinstance(key, bytes) or not isinstance(feature, bytes):
        raise ValueError("it is no tf.train.Example")
    for number, values in _fields(feature):
        if number == _FLOAT_LIST and isinstance(values, bytes):
            packed = b"".join(each for _, each in _fields(values) if isinstance(each, bytes))
            return key.decode(), np.frombuffer(packed, "<f4").astype(np.float64)
        if number == _INT64_LIST and isinstance(values, bytes):
            return key.decode(), np.array(list(_integers(values)), np.int64)
    return key.decode(), None


def _integers(values: bytes) -> Iterator[int]:
    for _, value in _fields(values):
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            yield number


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) of a message; a value is an int for a varint, and bytes for all else."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"it has a field of kind {kind}")
        if at + length > len(message):
            raise ValueError("a field of it breaks off")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, and the byte after it."""
    number = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("a number of it breaks off")


def _masked_crc32c(data: bytes) -> int:
    table, crc = _crc32c_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc32c_table() -> tuple[int, ...]:
    """Of the Castagnoli polynomial, reflected."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)

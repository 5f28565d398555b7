"""TFRecords without TensorFlow, of which nothing is taken but the generated classes of its messages.

Source of the file format: the comment at the head of TensorFlow's ``tensorflow/core/lib/io/record_writer.h``.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import google_crc32c


class TFRecordWriter:
    """``tf.io.TFRecordWriter``: records of their length, its checksum, the data, and its checksum."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("wb")  # noqa: SIM115

    def __enter__(self) -> TFRecordWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, record: bytes) -> None:
        """Append a record."""
        length = struct.pack("<Q", len(record))
        self._file.write(length + _masked_crc(length) + record + _masked_crc(record))


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def load_messages() -> SimpleNamespace:
    """The part of ``tf.train`` that examples are made of; the modules of TensorFlow's own are found in its folder."""
    name, folder = "tensorflow", _folder()
    for part in ("core", "example"):
        name, folder = f"{name}.{part}", folder / part
        sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
    modules = (importlib.import_module(f"{name}.{part}_pb2") for part in ("feature", "example"))
    return SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})


def _folder() -> Path:
    standing_in = sys.modules.pop("tensorflow")
    try:
        spec = importlib.util.find_spec("tensorflow")
    finally:
        sys.modules["tensorflow"] = standing_in
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent

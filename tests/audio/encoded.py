"""Audio files of every format as bytes, and their decoded frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.audio.reader import ClipReader, read_clip
from runner.audio.sources import Array
from tests.vggish_clips import PREPARATION

RATE = 44_100
SECONDS = 12
FLAC_TOTAL = 21
"""Where the total of samples is in a FLAC file: the low half of this byte and the 4 after it."""


def signal(seconds: float = SECONDS, rate: int = RATE, seed: int = 0) -> np.ndarray:
    time = np.arange(round(seconds * rate))
    noise = np.random.default_rng(seed).normal(0, 0.05, len(time))
    return 0.3 * np.sin(time * 0.05) + noise * (np.sin(time / rate) > 0)


def encoded(folder: Path, extension: str, seconds: float = SECONDS, rate: int = RATE, seed: int = 0) -> bytes:
    """A whole file of one second or more."""
    path = folder / f"encoded-{seed}.{extension}"
    kind, subtype = ("OGG", "OPUS") if extension == "opus" else (None, None)
    soundfile.write(path, signal(seconds, rate, seed), rate, format=kind, subtype=subtype)
    return path.read_bytes()


def decoded(clip: ClipReader) -> Array:
    """A clip's frames as its file has them, not resampled; to be called instead of iterating."""
    blocks = [np.array(block) for block in clip.mono_blocks()]
    return np.concatenate(blocks)


def read(folder: Path, extension: str, data: bytes, *span: float) -> tuple[Array, str | None]:
    path = folder / f"read.{extension}"
    path.write_bytes(data)
    with read_clip(str(path), *span, preparation=PREPARATION) as clip:
        return decoded(clip), clip.warning


def without_xing(data: bytes) -> bytes:
    """An MP3 file without the frame that states its length: a stream's."""
    return data[data.find(data[:2], 100) :]


def av_file(path: Path, codec: str, form: str, options: dict[str, str] | None = None) -> bytes:
    """Eight seconds by one of FFmpeg's encoders."""
    av = pytest.importorskip("av", reason="the extra av is not installed")
    samples = signal(8).astype(np.float32)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        for start in range(0, len(samples), 1024):
            part = samples[None, start : start + 1024]
            part = part if form == "fltp" else (part * 32_767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format=form, layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path.read_bytes()

"""Log-mel images of examples, for the map: computed from the clips' files, written as sheets of many images each."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from runner.audio.framing import scaled
from runner.audio.reader import leveled, read_clip
from runner.core.errors import ClipError
from runner.core.files import atomic
from runner.vggish.constants import (
    EXAMPLE_FRAMES,
    EXAMPLE_SAMPLES,
    LOG_OFFSET,
    MEL_BANDS,
    MEL_MAX_HZ,
    MEL_MIN_HZ,
    SAMPLE_RATE,
)
from runner.vggish.mel import hertz_to_mel, log_mel_of
from runner.vggish.spec import VGGISH

if TYPE_CHECKING:
    from runner.audio.preparation import Preparation
    from runner.config.schema import FrontendConfig

LogMel = NDArray[np.float32]

SHEET_COLUMNS = 10

SHEET_IMAGES = 100

LOWEST = math.log(LOG_OFFSET)
"""Log-mel of silence."""

_CONTEXT_S = 0.04
"""Audio decoded before and after an example, for the resampler's filter, at speed 1; whole frames at common rates."""

_MAX_EXTRA_S = 120.0
"""Audio that is decoded only to reach an example in a file without exact seeks, or for the level of a clip."""

_TIMEOUT_S = 5.0

_MAX_THREADS = 8

_TICKS_HZ = (250, 500, 1000, 2000, 4000)


class Example(NamedTuple):
    """An example of a local file: it begins at ``start_s`` in the file, its clip at ``clip_start``; seconds."""

    path: bytes
    start_s: float
    clip_start: float
    clip_end: float | None


def compute_log_mels(
    examples: Sequence[Example], frontend: FrontendConfig, timeout_s: float = _TIMEOUT_S
) -> tuple[list[LogMel | None], Counter[str]]:
    """Compute the log-mels of examples from their files, in threads.

    Args:
        examples: of any files.
        frontend: how their clips became waveform.
        timeout_s: seconds after which no further file is opened.

    Returns:
        Float32 [96, 64] of each example, None for one that failed; and how many failed, by reason.
    """
    deadline = time.monotonic() + timeout_s
    by_file: dict[bytes, list[int]] = {}
    for index in sorted(range(len(examples)), key=lambda index: examples[index].start_s):
        by_file.setdefault(examples[index].path, []).append(index)
    log_mels: list[LogMel | None] = [None] * len(examples)
    failures: Counter[str] = Counter()

    def read_file(indices: list[int]) -> list[str]:
        reasons: list[str] = []
        preparations: dict[tuple[float, float | None], Preparation] = {}
        for index in indices:
            example = examples[index]
            clip = example.clip_start, example.clip_end
            try:
                if time.monotonic() > deadline:
                    raise ClipError("timeout", f"not read within {timeout_s:g} s")
                if clip not in preparations:
                    preparations[clip] = _prepare(example, frontend, deadline)
                log_mels[index] = log_mel_of(_read_window(example, preparations[clip]))
            except ClipError as error:
                reasons.append(error.reason)
            except Exception as error:
                reasons.append(type(error).__name__)
        return reasons

    # BLAS's own threads only wait for one another in products as small as these.
    with threadpool_limits(1), ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        for reasons in threads.map(read_file, by_file.values()):
            failures.update(reasons)
    return log_mels, failures


def _prepare(example: Example, frontend: FrontendConfig, deadline: float) -> Preparation:
    """Return how the clip of an example is prepared; a level takes a reading of the clip."""
    preparation = frontend.preparation(VGGISH)
    if not preparation.needs_level:
        return preparation
    with read_clip(example.path, example.clip_start, example.clip_end, preparation=preparation) as clip:

        def check() -> None:
            if clip.seconds > _MAX_EXTRA_S or time.monotonic() > deadline:
                raise ClipError("timeout", f"its level takes more than {clip.seconds:g} s of audio")

        return leveled(clip, check)


def _read_window(example: Example, preparation: Preparation) -> NDArray[np.float32]:
    """Return the waveform of an example as the network had it, float32 [15600]: resampled, padded with zeros.

    Raises:
        ClipError: the file can't be read, has no audio there, or would have to be decoded for long to get there.
    """
    start_s, speed = example.start_s, preparation.speed
    context_s = min(_CONTEXT_S * speed, start_s - example.clip_start)
    end_s = start_s + (EXAMPLE_SAMPLES / SAMPLE_RATE + _CONTEXT_S) * speed
    if example.clip_end is not None:
        end_s = min(end_s, example.clip_end)
    with read_clip(example.path, start_s - context_s, end_s, preparation=preparation) as clip:
        if start_s > _MAX_EXTRA_S and not clip.can_seek:
            raise ClipError("timeout", f"{start_s:g} s into a file without exact seeks")
        samples = scaled(np.concatenate(list(clip)))[round(context_s / speed * SAMPLE_RATE) :][:EXAMPLE_SAMPLES]
    if not len(samples):
        raise ClipError("empty", f"the file ends before {start_s:g} s")
    window = np.zeros(EXAMPLE_SAMPLES, np.float32)
    window[: len(samples)] = samples
    return window


def write_sheets(log_mels: Sequence[LogMel], folder: Path) -> list[Path]:
    """Write log-mels as PNG sheets of 10 × 10 images, each 96 pixels (time) × 64 (low frequencies below).

    Level 0 is ``LOWEST`` and 255 the largest value of all; colors are those of the palette magma.  Sheets of an earlier
    map are removed.
    """
    from matplotlib import colormaps
    from PIL import Image

    highest = max((float(log_mel.max()) for log_mel in log_mels), default=LOWEST) + 1e-6
    palette = colormaps["magma"](np.arange(256), bytes=True)[:, :3].tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    sheets = []
    for first in range(0, len(log_mels), SHEET_IMAGES):
        images = log_mels[first : first + SHEET_IMAGES]
        rows = -(-len(images) // SHEET_COLUMNS)
        sheet = np.zeros((rows, MEL_BANDS, SHEET_COLUMNS, EXAMPLE_FRAMES), np.uint8)
        for index, log_mel in enumerate(images):
            sheet[index // SHEET_COLUMNS, :, index % SHEET_COLUMNS] = _to_levels(log_mel, highest).T[::-1]
        image = Image.fromarray(sheet.reshape(rows * MEL_BANDS, -1))
        image.putpalette(palette)
        sheets.append(folder / f"sheet-{first // SHEET_IMAGES:02d}.png")
        with atomic(sheets[-1]) as temporary:
            image.save(temporary, format="PNG")
    for path in set(folder.glob("sheet-*.png")).difference(sheets):
        path.unlink()
    return sheets


def _to_levels(log_mel: LogMel, highest: float) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.rint((log_mel - LOWEST) * (255 / (highest - LOWEST))).astype(np.uint8)
    return levels


def frequency_ticks() -> list[tuple[int, float]]:
    """Return frequencies in Hz, and the height of each in an image, as a share from its lower edge."""
    lowest, highest, *ticks = hertz_to_mel(np.array([MEL_MIN_HZ, MEL_MAX_HZ, *_TICKS_HZ]))
    bands = (np.array(ticks) - lowest) / (highest - lowest) * (MEL_BANDS + 1) - 1  # band b is centered at b
    return [(hertz, round(float(band + 0.5) / MEL_BANDS, 4)) for hertz, band in zip(_TICKS_HZ, bands, strict=True)]

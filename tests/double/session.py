"""A session that is exact arithmetic: windows times a fixed matrix of small whole numbers, plus an offset.

All products and sums are whole numbers below 2**53, so float64 gives the same bits for a window in whatever batch,
order or number of threads it is computed.  Each sample of a window matters, and so does its place; another seed of the
weights gives other numbers; bfloat16 and float16 round the samples, and so are as coarse as they should be.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.audio.framing import Windows, scaled
from runner.audio.samples import as_samples
from runner.contract.result import Decision, Effect
from runner.core.model_spec import ModelSpec
from runner.core.samples import LARGEST_SAMPLE
from runner.devices.detection import DeviceType
from runner.inference import gate
from runner.inference.session import EmbeddingSession, SessionMetadata
from runner.models.base import Target
from runner.models.vggish.program import VGGishProgram
from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_SAMPLES
from runner.vggish.reference import reference_log_mel
from runner.vggish.spec import VGGISH

Array = NDArray[np.float32]

SEED = "double/seed"
"""Name of the only weight, from which the matrix is drawn."""
BATCH_S = "DOUBLE_BATCH_S"
"""Environment variable: seconds that each batch takes, for a run that is to be caught in the middle."""
FAILING = "DOUBLE_FAILING"
"""Environment variable: the name of a process (``gpu1``) whose session fails, once it has embedded for a while."""
FAULT = "DOUBLE_FAULT"
"""Environment variable: the fault of ``tests/stress/mutation_list.py`` by which all sessions lie; none if empty."""
_BATCHES_BEFORE_FAILURE = 20
_GRID = float(1 << 20)
"""Samples are rounded to so many steps."""
_LARGEST = 8
_SCALE = 1.0 / (_GRID * _LARGEST * 16.0)
_KEPT_BITS = {"bfloat16": 7, "float16": 10}
"""Of the mantissa, behind the point."""


def draw_arrays(seed: int) -> dict[str, Array]:
    """The weights for a seed."""
    return {SEED: np.array([seed], np.float32)}


def weights_checksum(arrays: Mapping[str, Array]) -> str:
    """The seed in 64 digits."""
    return f"{int(arrays[SEED][0]):064x}"


def load_checkpoint(path: str) -> dict[str, Array]:
    """The weights of the seed that every byte of a checkpoint's files, ``path.index`` and ``path.data-…``, decides."""
    seed = 0
    for part in sorted(Path(path).parent.glob(f"{Path(path).name}.*")):
        seed = zlib.crc32(part.read_bytes(), seed)
    return draw_arrays(seed & 0xFFFFFF)


def embed(arrays: Mapping[str, Array], windows: Windows, precision: str = "float32", layer: str = "embedding") -> Array:
    """Embeddings float32 [n, 128] of windows [n, 15600]; NaN for a window that holds NaN or no waveform."""
    samples = scaled(windows).astype(np.float64)
    is_waveform = (np.abs(samples) <= LARGEST_SAMPLE).all(axis=1)
    samples[~is_waveform] = 0.0
    if precision in _KEPT_BITS:
        samples = _rounded(samples, _KEPT_BITS[precision])
    matrix, offsets = _network(int(arrays[SEED][0]))
    found = (np.rint(samples * _GRID) @ matrix + offsets) * _SCALE
    found[~is_waveform] = np.nan
    return found.astype(np.float32)


@functools.cache
def _network(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Whole numbers [15600, 128], and those that are added [128]."""
    random = np.random.Generator(np.random.PCG64(seed))
    matrix = random.integers(-_LARGEST, _LARGEST + 1, (EXAMPLE_SAMPLES, EMBEDDING_SIZE)).astype(np.float64)
    return matrix, random.integers(0, _LARGEST, EMBEDDING_SIZE) * _GRID


def remembered_log_mel(windows: Array, offset: float = 0.01) -> NDArray[np.float64]:
    """``reference_log_mel`` of windows float32 [n, 15600]: those of the parity gate are computed ahead."""
    return _log_mel(windows.tobytes(), len(windows), offset)


@functools.lru_cache(maxsize=8)
def _log_mel(samples: bytes, rows: int, offset: float) -> NDArray[np.float64]:
    return reference_log_mel(np.frombuffer(samples, np.float32).reshape(rows, -1), offset)


def _rounded(values: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Values with so many bits behind the point of their mantissa."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(mantissa * (2 << bits)) / (2 << bits), exponent)


def compute_ahead() -> None:
    """Compute what every run's worker would: forks of this process have it."""
    _network(0)
    for dtype in ("float32", "int16"):
        remembered_log_mel(scaled(gate.signals_of(VGGISH, dtype)))


class DoubleProgram(VGGishProgram):
    """A program that is the weights, and computes nothing by itself."""

    def __init__(
        self, spec: ModelSpec, weights: dict[str, Array], target: Target, algorithm: Decision | None = None
    ) -> None:
        self.spec, self.algorithm = spec, algorithm
        self.device_type, self.device_name = DeviceType.CPU, "/CPU:0"
        self.compiler = Effect("numpy", "a test double")
        self.weights, self.precision = dict(weights), target.precision
        weights.clear()


class DoubleSession(EmbeddingSession):
    """``EmbeddingSession`` without a network: what is made of clips, files and sample rates is inherited."""

    program: DoubleProgram

    def __init__(self, program: DoubleProgram, batch_size: int, metadata: SessionMetadata) -> None:
        super().__init__(program, batch_size, metadata)
        self._batch_s = float(os.environ.get(BATCH_S, "0"))
        self._batches_left = math.inf
        if multiprocessing.current_process().name == os.environ.get(FAILING):
            self._batches_left = _BATCHES_BEFORE_FAILURE

    def warm_up(self, dtype: str = "float32") -> float:
        """Nothing is compiled; the call is made all the same."""
        start = time.perf_counter()
        self.embed_windows(np.zeros((1, EXAMPLE_SAMPLES), dtype))
        return time.perf_counter() - start

    def embed_windows(self, windows: Windows, copied: Callable[[], None] | None = None) -> Array:
        """See ``EmbeddingSession.embed_windows``."""
        if not isinstance(windows, np.ndarray) or windows.dtype not in (np.float32, np.int16):
            windows = as_samples(windows, "windows")
        if windows.shape[1:] != (EXAMPLE_SAMPLES,):
            raise ValueError(f"rows have shape {windows.shape}: give [n, {EXAMPLE_SAMPLES}]")
        time.sleep(self._batch_s)
        self._batches_left -= 1
        if self._batches_left < 0:
            raise RuntimeError("the device is gone")
        return embed(self.program.weights, windows, self.program.precision)

    def log_mel(self, windows: Windows) -> Array:
        """The reference's own."""
        return remembered_log_mel(scaled(windows)).astype(np.float32)

    def on_device(self, windows: Windows) -> Any:
        """The windows, where they are."""
        return windows

    def run_on_device(self, windows: Any) -> Any:
        """Embeddings, with the method ``numpy`` of a tensor."""
        return _Tensor(self.embed_windows(windows))


class _Tensor:
    def __init__(self, values: Array) -> None:
        self._values = values

    def numpy(self) -> Array:
        return self._values

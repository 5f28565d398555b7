"""AudioSet's post-processing of embeddings: PCA with whitening, then quantization to 8 bits.

Formulas and constants: the AudioSet VGGish release (``vggish_postprocess.py``, ``vggish_params.py``). No TensorFlow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import WeightsError
from runner.vggish.constants import EMBEDDING_SIZE, PCA_EIGEN_VECTORS, PCA_MEANS, QUANTIZE_MAX, QUANTIZE_MIN

COLUMNS = {"pca": "embedding_pca", "audioset": "embedding_u8"}
"""Column that each ``output.postprocess`` adds next to ``embedding``."""


@dataclass(frozen=True)
class PcaParameters:
    """Parameters of the PCA.

    Attributes:
        eigen_vectors: float64 [128, 128], a row for each component.
        means: float64 [128].
    """

    eigen_vectors: NDArray[np.float64]
    means: NDArray[np.float64]

    @property
    def checksum(self) -> str:
        """SHA-256 of the values; the same in any file."""
        values = np.concatenate([self.eigen_vectors.ravel(), self.means])
        return hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()


def load_pca(path: str | Path) -> PcaParameters:
    """Read ``vggish_pca_params.npz``, without unpickling.

    Raises:
        WeightsError: the file can't be read, lacks an array, or one has the wrong shape or is not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            parameters = {name: arrays[name] for name in (PCA_EIGEN_VECTORS, PCA_MEANS) if name in arrays}
            names = ", ".join(arrays) or "nothing"
    except Exception as error:  # NumPy's reader passes on the errors of zip files, tokenizers and parsers
        raise WeightsError(f"{path} can't be read as PCA parameters ({error}): give vggish_pca_params.npz") from error
    if missing := [name for name in (PCA_EIGEN_VECTORS, PCA_MEANS) if name not in parameters]:
        raise WeightsError(f"{path} has no {' and no '.join(missing)} (it has {names}): give vggish_pca_params.npz")
    shapes: Mapping[str, Any] = {
        PCA_EIGEN_VECTORS: ((EMBEDDING_SIZE, EMBEDDING_SIZE),),
        PCA_MEANS: ((EMBEDDING_SIZE, 1), (EMBEDDING_SIZE,)),
    }
    for name, array in parameters.items():
        if array.shape not in shapes[name]:
            raise WeightsError(
                f"{path}: {name} has shape {list(array.shape)}, not {list(shapes[name][0])}: give vggish_pca_params.npz"
            )
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite numbers: get the file again")
    means = parameters[PCA_MEANS].astype(np.float64).reshape(-1)
    return PcaParameters(parameters[PCA_EIGEN_VECTORS].astype(np.float64), means)


def random_pca(seed: int) -> PcaParameters:
    """Draw a rotation without means, for random weights: right shapes, meaningless values."""
    rng = np.random.Generator(np.random.PCG64(seed))
    rotation, _ = np.linalg.qr(rng.standard_normal((EMBEDDING_SIZE, EMBEDDING_SIZE)))
    return PcaParameters(rotation, np.zeros(EMBEDDING_SIZE))


def project(embeddings: NDArray[np.float32], pca: PcaParameters) -> NDArray[np.float64]:
    """Compute P · (e − means): float32 [n, 128] to float64 [n, 128]."""
    projected: NDArray[np.float64] = (embeddings.astype(np.float64) - pca.means) @ pca.eigen_vectors.T
    return projected


def quantize(projected: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Clip to ±2, scale to 0..255, truncate (not round): float [n, 128] to uint8 [n, 128].

    Raises:
        ValueError: NaN or infinity, which would become some number of 0..255.
    """
    if bad := int(np.count_nonzero(~np.isfinite(projected).all(axis=-1))):
        raise ValueError(f"{bad} projected embeddings hold NaN or infinity, which have no 8-bit form: leave them out")
    clipped = np.clip(projected, QUANTIZE_MIN, QUANTIZE_MAX)
    scaled = (clipped - QUANTIZE_MIN) * (255.0 / (QUANTIZE_MAX - QUANTIZE_MIN))
    quantized: NDArray[np.uint8] = scaled.astype(np.uint8)
    return quantized


@dataclass(frozen=True)
class Postprocessor:
    """The post-processing of ``output.postprocess``, ``kind`` pca or audioset."""

    kind: str
    pca: PcaParameters

    @property
    def column(self) -> str:
        """Name of its column in the output."""
        return COLUMNS[self.kind]

    def __call__(self, embeddings: NDArray[np.float32]) -> NDArray[Any]:
        """Post-process float32 [n, 128] to float32 (pca) or uint8 (audioset) [n, 128]."""
        projected = project(embeddings, self.pca)
        return quantize(projected) if self.kind == "audioset" else projected.astype(np.float32)


def pca_in_effect(postprocess: Postprocessor | None) -> dict[str, str]:
    """Return the PCA parameters' part of an identity; empty without post-processing."""
    return {} if postprocess is None else {"pca.checksum": postprocess.pca.checksum}

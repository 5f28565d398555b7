"""``weights=``: the source of the network's weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from runner.config.checks import FREE, positive_seconds
from runner.core.errors import ConfigError

_SEEDS = 2**32

BASE_URL = "https://storage.googleapis.com/audioset/"
"""The AudioSet releases' own folder."""


@dataclass
class WeightsConfig:
    """The source of the network's weights."""

    name: str = "auto"
    """auto, audioset, file or random."""


@dataclass
class RandomWeights(WeightsConfig):
    """Seeded He initialization: for benchmarking only; embeddings are not meaningful."""

    name: str = "random"
    """auto, audioset, file or random."""

    seed: int = 0
    """Seed of the random weights, from 0 to 2**32 - 1."""

    def __post_init__(self) -> None:
        _check_seed(self.seed)


@dataclass
class FileWeights(WeightsConfig):
    """A TensorFlow checkpoint of the user's."""

    name: str = "file"
    """auto, audioset, file or random."""

    path: str | None = None
    """The checkpoint: a V1 file, or the prefix of a V2 one."""

    pca_path: str | None = None
    """PCA parameters (.npz) for ``output.postprocess``; null: the released ones."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                "weights=file needs weights.path: give the checkpoint, as in weights.path=/data/model.ckpt"
            )


@dataclass
class AudiosetWeights(WeightsConfig):
    """The released checkpoint, from ``paths.models`` or downloaded once."""

    name: str = "audioset"
    """auto, audioset, file or random."""

    base_url: str = field(default=BASE_URL, metadata=FREE)
    """Address of the folder to download from: the release's, or that of a mirror."""

    timeout_s: float = field(default=10.0, metadata=FREE)
    """Seconds that the server may take to answer, or be silent, before the download is tried again."""

    def __post_init__(self) -> None:
        positive_seconds("weights.timeout_s", self.timeout_s, 10)
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"weights.base_url={self.base_url} is not a web address: use http:// or https://")


@dataclass
class AutoWeights(AudiosetWeights):
    """The released checkpoint; where it can't be had, random weights, on the demo clips only."""

    name: str = "auto"
    """auto, audioset, file or random."""

    seed: int = 0
    """Seed of the random weights, from 0 to 2**32 - 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seed(self.seed)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < _SEEDS:
        raise ConfigError(f"weights.seed={seed} is not a seed: use a whole number from 0 to 2**32 - 1")

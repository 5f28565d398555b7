"""``output``: the files that a run leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from runner.config.checks import FREE, at_least, one_of, positive_seconds
from runner.core.errors import ConfigError
from runner.core.layout import FORMATS
from runner.core.paths import as_path

POSTPROCESSES = ("none", "pca", "audioset")

_COMPRESSIONS = ("zstd", "snappy", "gzip", "none")


@dataclass
class OutputConfig:
    """The files that a run leaves, and where."""

    formats: list[str] = field(default_factory=lambda: ["parquet"])
    """Any of parquet (a row per example), npz (a file per clip), tfrecord (VGGish's needs postprocess=audioset)."""

    postprocess: str = "none"
    """none; of VGGish also pca (adds ``embedding_pca``) or audioset (adds ``embedding_u8``: PCA, clipped to ±2, 8
    bits)."""

    pool: list[float] = field(default_factory=list)
    """Seconds of pooling windows: ``pooled/`` has mean and deviation of each, and of each clip. Empty: no pooling."""

    dir: str | None = field(default=None, metadata=FREE)
    """Folder or object store's URL (s3://, gs://, hf://); an unfinished run in it is resumed. null: a new folder."""

    clips_per_shard: int | None = None
    """Clips in a shard; null: 64 to 8,192, for about 256 shards, and fewer of long clips."""

    compression: str = "zstd"
    """Compression of Parquet files: zstd, snappy, gzip or none."""

    upload_timeout_s: float = field(default=300.0, metadata=FREE)
    """Seconds that an object store may fail or throttle an upload, retries included, before the run fails."""

    def __post_init__(self) -> None:
        self.dir = self.dir and as_path(self.dir)
        if not self.formats:
            raise ConfigError("output.formats is empty: name at least one, as in output.formats=[parquet,npz]")
        for name in self.formats:
            one_of("output.formats", name, tuple(FORMATS))
        one_of("output.postprocess", self.postprocess, POSTPROCESSES)
        one_of("output.compression", self.compression, _COMPRESSIONS)
        for pool_s in self.pool:
            positive_seconds("output.pool", pool_s, 60)
        if len(set(self.pool)) < len(self.pool):
            raise ConfigError(f"output.pool={self.pool} has a duration twice: name each once")
        if self.clips_per_shard is not None:
            at_least("output.clips_per_shard", self.clips_per_shard, 1)
        positive_seconds("output.upload_timeout_s", self.upload_timeout_s, 300)
        if (self.dir or "").startswith("hf://") and not (self.dir or "").startswith("hf://buckets/"):
            raise ConfigError(
                "output.dir is in a git repository of the Hub (hf://), where each put would be a commit, of which it "
                "takes few an hour: use hf://buckets/..., or write to a folder and upload that"
            )

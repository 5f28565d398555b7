"""``dataset=``: the clips to embed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from runner.config.checks import FREE, at_least, one_of, positive_seconds
from runner.core.errors import ConfigError
from runner.core.paths import as_path

AUDIO_EXTENSIONS = (
    "wav wave w64 rf64 flac ogg oga opus mp3 mp2 aif aiff aifc au snd caf sph nist voc pvf paf sf ircam svx 8svx avr "
    "htk sds xi m4a m4b mp4 aac webm mka wma ac3 amr ape wv tta"
)
"""Names of audio files end so, separated by spaces: all that libsndfile and PyAV (extra: av) read."""


@dataclass
class DatasetConfig:
    """The clips to embed; the keys that all data sets have."""

    name: str = "demo"
    """folder, manifest, webdataset, parquet or demo."""

    on_error: str = field(default="skip", metadata=FREE)
    """A clip that can't be embedded: skip (with a reason, see clips.parquet) or fail (the run ends at the first)."""

    max_skipped: float | None = field(default=None, metadata=FREE)
    """Skipped clips after which the run fails: a number of clips, or a share of them below 1; null: no limit."""

    on_truncated: str = "keep"
    """A clip whose file breaks off: keep (all that decodes, marked) or skip."""

    decode_timeout_s: float = field(default=120.0, metadata=FREE)
    """Seconds without progress after which a decode process is restarted and its clip skipped."""

    max_duration_s: float = 172800.0
    """Longest clip, in seconds of audio; longer ones are skipped. The default is two days."""

    prefetch: int = field(default=8, metadata=FREE)
    """Clips in download per decode process, from an object store; of packed files 2 or more fetch 16 MiB ahead."""

    download_timeout_s: float = field(default=60.0, metadata=FREE)
    """Seconds for the download of a clip from an object store, retries included; then it is skipped."""

    recorded_at: str = "auto"
    """Column ``recorded_at``, by file names: auto (recorders' ways), none, or strptime's pattern as ``%Y%m%d_%H%M``."""

    partition: str | None = None
    """Part of the data set to embed: ``2/5`` is the second of five, for five machines; see ``vggish-runner merge``."""

    listing: str | None = field(default=None, metadata=FREE)
    """File or URL of the listing that the partitions share: the first machine writes it, the others read it."""

    def __post_init__(self) -> None:
        one_of("dataset.on_error", self.on_error, ("skip", "fail"))
        one_of("dataset.on_truncated", self.on_truncated, ("keep", "skip"))
        most = self.max_skipped
        if most is not None and not (0 <= most < math.inf and (most < 1 or most == int(most))):
            raise ConfigError(
                f"dataset.max_skipped={most} is neither a number of clips nor a share of them: use for example 100 "
                "or 0.05"
            )
        positive_seconds("dataset.decode_timeout_s", self.decode_timeout_s, 120)
        positive_seconds("dataset.max_duration_s", self.max_duration_s, 172800)
        positive_seconds("dataset.download_timeout_s", self.download_timeout_s, 60)
        at_least("dataset.prefetch", self.prefetch, 1)
        if self.recorded_at not in ("auto", "none"):
            _check_pattern(self.recorded_at)
        if self.partition is not None:
            parse_partition(self.partition)
        elif self.listing is not None:
            raise ConfigError(
                "dataset.listing is what partitions read: give dataset.partition=i/n too, or leave it out"
            )


@dataclass
class FolderDataset(DatasetConfig):
    """Every audio file below a folder."""

    name: str = "folder"
    """folder, manifest, webdataset, parquet or demo."""

    root: str | None = None
    """Folder or URL; null: the demo clips. Links are followed, on one path once into each folder and once into root."""

    pattern: str = "*"
    """Pattern that paths below ``root`` match; ``*`` crosses folders."""

    extensions: list[str] = field(default_factory=AUDIO_EXTENSIONS.split)
    """Endings of the names of audio files, without the dot."""

    label_from: str = "parent"
    """Label of a clip: parent (the name of its folder) or none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.root = self.root and as_path(self.root)
        one_of("dataset.label_from", self.label_from, ("parent", "none"))
        _check_extensions(self.extensions)


@dataclass
class ManifestDataset(DatasetConfig):
    """The rows of a CSV or Parquet file: ``path``, and optionally ``start``, ``end`` (seconds) and ``label``."""

    name: str = "manifest"
    """folder, manifest, webdataset, parquet or demo."""

    path: str | None = None
    """The CSV or Parquet file, or its URL."""

    root: str | None = None
    """Folder or URL that relative paths start from; null: the folder of the manifest."""

    allow_paths_outside_root: bool = False
    """Whether paths may lead out of ``root``; refused by default, since a manifest of others may name any file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path, self.root = self.path and as_path(self.path), self.root and as_path(self.root)
        if not self.path:
            raise ConfigError("dataset=manifest needs dataset.path: give a CSV or Parquet file with a column 'path'")


@dataclass
class PackedDataset(DatasetConfig):
    """Clips that are packed in larger files."""

    path: str | None = None
    """The files: one, all below a folder or URL, or a pattern as ``shard-{000..123}.tar`` or ``*.parquet``."""

    prefix: bool = False
    """Put the name of its file before each clip's, for files that have clips of the same names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = self.path and as_path(self.path)
        if not self.path:
            raise ConfigError(
                f"dataset={self.name} needs dataset.path: give {self.one_file}, a folder or URL of them, or a pattern "
                "with {000..123} or *"
            )
        if self.path.startswith("pipe:") or "::" in self.path:
            raise ConfigError(
                f"dataset.path={self.path} is WebDataset's way to name a command or several places, and no path: "
                "give a path or an object store's URL"
            )

    @property
    def one_file(self) -> str:
        """One of the files, as messages name it."""
        return "a Parquet file"

    def listing_options(self) -> tuple[Any, ...]:
        """Return the settings, besides a file's content, that the listing of its clips depends on."""
        raise NotImplementedError


@dataclass
class WebDataset(PackedDataset):
    """Audio members of WebDataset tars."""

    name: str = "webdataset"
    """folder, manifest, webdataset, parquet or demo."""

    extensions: list[str] = field(default_factory=AUDIO_EXTENSIONS.split)
    """Endings of the names of audio members, without the dot."""

    label_from: str = "parent"
    """Label of a clip: parent (its folder in the tar), none, or the sample's member that has it (cls, json:KEY)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_extensions(self.extensions)
        if not self.label_from.strip(":"):
            raise ConfigError("dataset.label_from is empty: use parent, none, or an extension as cls or json:KEY")

    @property
    def one_file(self) -> str:
        """One of the files, as messages name it."""
        return "a tar"

    def listing_options(self) -> tuple[Any, ...]:
        """Return the settings, besides a file's content, that the listing of its clips depends on."""
        return (*sorted(self.extensions), self.label_from)


@dataclass
class ParquetDataset(PackedDataset):
    """Audio in a column of Parquet files, as Hugging Face data sets have it."""

    name: str = "parquet"
    """folder, manifest, webdataset, parquet or demo."""

    audio_column: str | None = None
    """Column of audio files' bytes, binary or a struct of ``bytes`` and ``path``; null: the only such column."""

    name_column: str | None = None
    """Column of clips' names; null: the audio's path, else the number of the row."""

    label_column: str = "label"
    """Column of labels; it may be missing."""

    def listing_options(self) -> tuple[Any, ...]:
        """Return the settings, besides a file's content, that the listing of its clips depends on."""
        return self.audio_column, self.name_column, self.label_column


def parse_partition(partition: str) -> tuple[int, int]:
    """Return (index, count) of a ``dataset.partition``, the index counted from 1.

    Raises:
        ConfigError: it is not of the form i/n with 1 ≤ i ≤ n.
    """
    index, slash, count = str(partition).partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"dataset.partition={partition} is not i/n: use for example 1/4 to 4/4 on four machines")
    return int(index), int(count)


def _check_pattern(pattern: str) -> None:
    now = datetime(2023, 1, 15, 5, 30)
    try:
        is_pattern = "%" in pattern and bool(datetime.strptime(now.strftime(pattern), pattern))
    except ValueError:
        is_pattern = False
    if not is_pattern:
        raise ConfigError(
            f"dataset.recorded_at={pattern} is no pattern of a date: use auto, none, or strptime's as %Y%m%d_%H%M%S"
        )


def _check_extensions(extensions: list[str]) -> None:
    if not extensions:
        raise ConfigError("dataset.extensions is empty: name at least one, as in dataset.extensions=[wav,flac]")

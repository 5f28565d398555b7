"""Builds the manifest of a data set, and cuts partitions from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from runner.config.schema import FolderDataset, ManifestDataset, PackedDataset
from runner.core.errors import DatasetError
from runner.core.paths import is_url
from runner.dataset.demo import demo_clips
from runner.dataset.digests import digest_of
from runner.dataset.folder import list_folder
from runner.dataset.manifest_file import read_manifest_file
from runner.dataset.shards import max_durations_s, plan_shards
from runner.dataset.table import Manifest, PartitionInfo

if TYPE_CHECKING:
    from runner.config.schema import DatasetConfig


def build_manifest(dataset: DatasetConfig, outputs: Path) -> Manifest:
    """List the data set.

    Args:
        dataset: the configuration.
        outputs: ``paths.outputs``, for the demo clips and the listings of packed data sets.

    Raises:
        DatasetError: there are no clips, or a manifest file has a bad row.
    """
    if isinstance(dataset, ManifestDataset):
        return read_manifest_file(dataset)
    if isinstance(dataset, PackedDataset):
        from runner.dataset.packed.manifest import list_packed

        return list_packed(dataset, outputs)
    if isinstance(dataset, FolderDataset) and dataset.root is not None:
        root = dataset.root.rstrip("/") if is_url(dataset.root) else Path(dataset.root).expanduser().resolve()
        return list_folder(root, dataset, is_demo=False)
    return list_folder(demo_clips(outputs), FolderDataset(extensions=["wav", "flac", "ogg", "mp3"]), is_demo=True)


def select_partition(
    whole: Manifest,
    index: int,
    count: int,
    clips_per_shard: int | None,
    max_shard_s: float = math.inf,
    *,
    labels: bool = False,
) -> Manifest:
    """Return the clips of every ``count``-th shard of a data set, from shard ``index`` (1 is the first) on.

    The cut is the same on every machine that lists the same data; all partitions together are the data set.

    Args:
        whole: the data set.
        index: the partition, from 1.
        count: the number of partitions.
        clips_per_shard: as in ``plan_shards``.
        max_shard_s: likewise.
        labels: whether the partition needs the data set's labels, for a format that numbers them.

    Raises:
        DatasetError: there are fewer shards than partitions.
    """
    shards = plan_shards(whole.table.num_rows, clips_per_shard, max_durations_s(whole.table), max_shard_s)
    if len(shards) < count:  # an error for every partition, as without this one they could not be merged
        raise DatasetError(
            f"dataset.partition={index}/{count}: {whole.description} make only {len(shards)} shards; "
            "use fewer partitions, or a smaller output.clips_per_shard"
        )
    numbers = list(range(index - 1, len(shards), count))
    tables = [whole.table.slice(shards[number].first, shards[number].rows) for number in numbers]
    table = pa.concat_tables(tables)
    info = PartitionInfo(
        index=index,
        count=count,
        digest=whole.digest,
        clips=whole.table.num_rows,
        shards=numbers,
        sizes=[shard.num_rows for shard in tables],
        labels=whole.table["label"].unique().drop_null().to_pylist() if labels else None,
    )
    description = f"{table.num_rows:,} clips, partition {index} of {count} of {whole.description}"
    return Manifest(whole.root, table, digest_of(table), whole.is_demo, description, whole.ignored, info, whole.table)

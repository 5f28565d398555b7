"""Builds the manifest of a data set, and plans its shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from runner.config.schema import FolderDataset, ManifestDataset, PackedDataset
from runner.core.errors import DatasetError
from runner.core.paths import is_url
from runner.dataset.demo import demo_clips
from runner.dataset.digests import digest_of
from runner.dataset.folder import _from_folder
from runner.dataset.manifest_file import _from_file
from runner.dataset.shards import shards_of
from runner.dataset.table import Manifest
from runner.vggish.constants import EXAMPLE_HOP_S

if TYPE_CHECKING:
    from runner.config.schema import DatasetConfig


def select_partition(
    whole: Manifest,
    which: int,
    of: int,
    clips_per_shard: int | None,
    hop_s: float = EXAMPLE_HOP_S,
    *,
    labels: bool = False,
) -> Manifest:
    """The clips of every ``of``-th shard of the whole, from shard ``which`` (1 is the first) on.

    The same on every machine that lists the same data; the parts together are the whole.

    Args:
        whole: the data set.
        which: the part, from 1.
        of: how many parts there are.
        clips_per_shard: as in ``plan_shards``.
        hop_s: seconds between examples.
        labels: whether to tell the whole's labels, for a format that numbers them.

    Raises:
        DatasetError: there are fewer shards than parts.
    """
    shards = shards_of(whole.table, clips_per_shard, hop_s)
    numbers = list(range(which - 1, len(shards), of))
    if len(shards) < of:  # for every part alike, as without this one they would make no whole
        raise DatasetError(
            f"dataset.partition={which}/{of}: {whole.description} make only {len(shards)} shards; "
            "use fewer partitions, or a smaller output.clips_per_shard"
        )
    pieces = [whole.table.slice(first, end - first) for first, end in (shards[number] for number in numbers)]
    table = pa.concat_tables(pieces)
    part: dict[str, Any] = {
        "which": which,
        "of": of,
        "digest": whole.digest,
        "clips": whole.table.num_rows,
        "shards": numbers,
        "sizes": [piece.num_rows for piece in pieces],
    }
    if labels:
        part["labels"] = whole.table["label"].unique().drop_null().to_pylist()
    description = f"{table.num_rows:,} clips, part {which} of {of} of {whole.description}"
    return Manifest(whole.root, table, digest_of(table), whole.is_demo, description, whole.ignored, part, whole.table)


def build_manifest(dataset: DatasetConfig, outputs: Path) -> Manifest:
    """List the data set.

    Args:
        dataset: what the configuration asks for.
        outputs: where the demo clips are made, should they be wanted, and listings of packed data sets kept.

    Raises:
        DatasetError: there are no clips, or a manifest file has a bad row.
    """
    if isinstance(dataset, ManifestDataset):
        return _from_file(dataset)
    if isinstance(dataset, PackedDataset):
        from runner.dataset.packed.manifest import list_packed

        return list_packed(dataset, outputs)
    if isinstance(dataset, FolderDataset) and dataset.root is not None:
        root = dataset.root.rstrip("/") if is_url(dataset.root) else Path(dataset.root).expanduser().resolve()
        return _from_folder(root, dataset, is_demo=False)
    return _from_folder(demo_clips(outputs), FolderDataset(extensions=["wav", "flac", "ogg", "mp3"]), is_demo=True)

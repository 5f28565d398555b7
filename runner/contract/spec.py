"""A run's order to its worker: the types of spec.json, which the command writes once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.schema import RunConfig
from runner.weights.selection import WeightsChoice

if TYPE_CHECKING:
    from runner.dataset.table import Manifest


@dataclass(frozen=True)
class PartitionInfo:
    """Partition ``which`` (from 1) of ``of`` of a data set that has this digest and so many clips.

    ``shards`` are the numbers of the data set's shards that are in it, ``sizes`` their clips; ``labels`` are the data
    set's, where a format numbers them.
    """

    which: int
    of: int
    digest: str
    clips: int
    shards: tuple[int, ...]
    sizes: tuple[int, ...]
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DatasetSummary:
    """The data set of a run; ``ignored`` counts files that are no clips, by suffix."""

    root: str
    digest: str
    clips: int
    is_demo: bool = False
    description: str = ""
    ignored: Mapping[str, int] = field(default_factory=dict)
    part: PartitionInfo | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> DatasetSummary:
        """Describe a manifest."""
        return cls(
            root=manifest.root,
            digest=manifest.digest,
            clips=manifest.table.num_rows,
            is_demo=manifest.is_demo,
            description=manifest.description,
            ignored=dict(manifest.ignored),
            part=PartitionInfo(**manifest.part) if manifest.part else None,
        )


@dataclass(frozen=True)
class RemoteHandle:
    """The command's hold on an output in an object store, for its worker.

    ``token`` is the lease's, ``plan`` the run's id; ``fenced`` says whether the store keeps to conditions.
    """

    url: str
    token: str
    plan: str
    fenced: bool


@dataclass(frozen=True)
class RunSpec:
    """A worker's order.

    ``run_dir`` is the run's folder, of an output in an object store the staging folder; ``shards`` are (first clip, one
    past the last) of ``manifest``, and ``rows`` the digest of each one's rows; ``spawned_at`` is in seconds since the
    epoch.
    """

    config: RunConfig
    run_dir: Path
    manifest: Path
    dataset: DatasetSummary
    shards: tuple[tuple[int, int], ...]
    rows: tuple[str, ...]
    weights: WeightsChoice
    remote: RemoteHandle | None = None
    spawned_at: float = 0.0

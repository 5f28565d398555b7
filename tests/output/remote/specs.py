"""Specs of runs whose output is in an object store, for the worker's side of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.config.schema import RunConfig
from runner.contract.spec import DatasetSummary, RemoteHandle, RunSpec
from runner.core.layout import RunLayout
from runner.core.span import Span
from runner.weights.selection import WeightsChoice


def spec_of(
    folder: Path, config: RunConfig, remote: RemoteHandle, shards: Sequence[Span], row_digests: Sequence[str]
) -> RunSpec:
    """Return the spec of a run in ``folder``."""
    return RunSpec(
        config=config,
        run_dir=folder,
        manifest=RunLayout(folder).manifest,
        dataset=DatasetSummary(root="", digest="", clips=shards[-1].end),
        shards=tuple(shards),
        row_digests=tuple(row_digests),
        weights=WeightsChoice("random", "random", None, None, 0, "", True),
        remote=remote,
    )

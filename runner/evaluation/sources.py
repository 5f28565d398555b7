"""What the arguments of ``vggish-runner fad`` name: runs, folders of runs, URLs of them, and files of statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from runner.contract.files import parse_result, parse_sweep, parse_tracking
from runner.contract.result import RunResult, Startup
from runner.contract.tracking import TrackingState
from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.core.paths import as_path, is_url
from runner.evaluation.locations import FolderLocation, Location, RowBlock, UrlLocation, run_rows
from runner.output.run_blocks import has_embeddings, read_metadata
from runner.output.run_model import CLASSES, RunModel
from runner.statistics.files import Summary, from_folder, from_npz, from_rows, from_tfrecord
from runner.statistics.moments import EmbeddingStatistics, Rows

_DEPTH = 4
"""Folders between the one that is named and a run: outputs/runs/DAY/TIME."""

_STATISTICS_FILES = {".npz": from_npz, ".tfrecord": from_tfrecord, ".tfrecords": from_tfrecord}


@dataclass(frozen=True)
class EmbeddingSet:
    """A set of embeddings to compare.

    ``name`` is for a person; ``blocks`` reads the embeddings themselves, where they are at hand; ``result`` is the
    run's, None for a file of statistics; ``tracking`` is its MLflow run; ``is_remote`` is whether reading the
    embeddings means downloading them.
    """

    name: str
    summary: Summary
    blocks: Callable[[], Iterator[RowBlock]] | None = None
    result: RunResult | None = None
    tracking: TrackingState | None = None
    is_remote: bool = False

    @property
    def is_random(self) -> bool:
        """Whether it was made with random weights, so that its distances mean nothing."""
        return self.summary.about.get("weights.random") == "true"


def find_sets(argument: str, timeout_s: float = 60.0, output: str | None = None) -> list[EmbeddingSet]:
    """The sets of embeddings that an argument names: one, or one a run of a sweep or of a folder of runs.

    Args:
        argument: a path or a URL.
        timeout_s: how long an object may take, with all attempts.
        output: of the runs' models; None for the first.  A file of statistics is taken as it is.

    Raises:
        RunnerError: it names none, one can't be read, or has no such output.
    """
    name = argument.rstrip("/")
    suffix = Path(name).suffix
    if is_url(name):
        if suffix in _STATISTICS_FILES:
            parent, _, file = name.rpartition("/")
            if (data := UrlLocation(parent, timeout_s).read(file)) is None:
                raise RunnerError(f"{name} is not there: give a run's URL, or that of a file of statistics")
            return [EmbeddingSet(name, _STATISTICS_FILES[suffix](name, data))]
        sets = list(_sets(UrlLocation(name, timeout_s), _DEPTH, output))
    else:
        path = Path(as_path(name)).expanduser()
        if path.is_file():
            return [_of_file(path)]
        if not path.is_dir():
            raise RunnerError(f"{path} is not there: give a run's folder, or a file of statistics")
        if (path / "mu.npy").is_file():
            return [EmbeddingSet(str(path), from_folder(path))]
        sets = list(_sets(FolderLocation(path), _DEPTH, output))
    if not sets:
        raise RunnerError(
            f"{name} holds no embeddings: give the folder or URL of a run, of a sweep or of several runs, or a file of "
            "statistics (.npz, .tfrecord, mu.npy and cov.npy)"
        )
    return sets


def _of_file(path: Path) -> EmbeddingSet:
    if path.suffix == ".npy":
        summary = from_rows(path)
        assert summary.rows is not None
        return EmbeddingSet(str(path), summary, partial(_one_clip, path.name, summary.rows))
    read = _STATISTICS_FILES.get(path.suffix, from_tfrecord)
    return EmbeddingSet(str(path), read(str(path), path.read_bytes()))


def _one_clip(name: str, rows: Rows) -> Iterator[RowBlock]:
    yield RowBlock([name], np.array([len(rows)]), rows)


def _sets(location: Location, depth: int, output: str | None) -> Iterator[EmbeddingSet]:
    if (run := _run(location, output)) is not None:
        yield run
        return
    sweep = location.read(RunLayout.sweep)
    if sweep is None and depth == 0:
        return
    jobs = parse_sweep(f"{location.name}/{RunLayout.sweep}", sweep).jobs if sweep else location.folders()
    for folder in jobs:
        yield from _sets(location.below(folder), depth - 1, output)


def _run(location: Location, output: str | None) -> EmbeddingSet | None:
    """The run of a location; None if there is none, or one without a single example."""
    statistics = location.read(RunLayout.statistics)
    readable = has_embeddings(location.name)
    if statistics is None and not readable:
        return None
    result = parse_result(f"{location.name}/{RunLayout.result}", location.read(RunLayout.result))
    own = from_npz(f"{location.name}/{RunLayout.statistics}", statistics) if statistics is not None else None
    about = own.about if own else _without_classes(read_metadata(location.name))
    if not (own and own.about) and result:
        about = {**about, **_about(result)}
    model = RunModel.from_metadata(about)
    chosen = model.output(output, location.name)
    blocks = partial(run_rows, location, chosen.name) if readable else None
    if own is None or chosen is not model.outputs[0]:  # stats.npz is of the first output, unless that is too wide
        own = _summarize(location.name, blocks, chosen.name)
    summary = replace(own, about={**about, "output": chosen.name} if about else {})
    tracking = parse_tracking(f"{location.name}/{RunLayout.tracking}", location.read(RunLayout.tracking))
    return EmbeddingSet(location.name, summary, blocks, result, tracking, isinstance(location, UrlLocation))


def _summarize(name: str, blocks: Callable[[], Iterator[RowBlock]] | None, output: str) -> Summary:
    """Read a run's embeddings for their mean and covariance."""
    if blocks is None:
        raise RunnerError(f"{name} has no embeddings at hand, and no statistics of its output {output}")
    sums = sum_of(blocks())
    if sums.n < 2:
        raise RunnerError(f"{name} has {sums.n} examples, which have no covariance: two are needed at least")
    return Summary(sums.mean, sums.covariance, sums.n)


def sum_of(blocks: Iterator[RowBlock]) -> EmbeddingStatistics:
    """The statistics of embeddings that are read block by block."""
    sums: EmbeddingStatistics | None = None
    for block in blocks:
        sums = sums or EmbeddingStatistics(block.rows.shape[1])
        sums.add(block.rows)
    return sums or EmbeddingStatistics(0)


def _without_classes(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if not key.startswith(CLASSES)}


def _about(result: RunResult) -> dict[str, str]:
    """What result.json says of a run's embeddings, in the words of stats.npz."""
    startup = result.startup or Startup()
    weights, precision, spec = startup.weights, startup.precision, result.info.config.model.spec
    return {
        "model": spec.title or spec.name,
        "weights.source": str(weights and weights.source),
        "weights.checksum": str(weights and weights.checksum),
        "weights.random": str(weights and weights.is_random).lower(),
        "precision": str(precision and precision.effective),
        **{f"frontend.{key}": str(value) for key, value in vars(result.info.config.frontend).items()},
    }

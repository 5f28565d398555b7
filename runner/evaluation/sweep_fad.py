"""FAD between the jobs of a sweep: how far a coarser precision or another front end moved the embeddings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract.sweep import SweepFad
from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.reporting.comparability import facts_of_result
from runner.reporting.quality import quality_of, ranked_by_precision
from runner.reporting.verdict import are_partitions
from runner.statistics.files import from_npz
from runner.statistics.frechet import Gaussian, frechet_distance

if TYPE_CHECKING:
    from runner.contract.result import RunResult

log = logging.getLogger(__name__)


def sweep_fads(sweep_dir: Path, jobs: Mapping[str, RunResult]) -> dict[str, SweepFad]:
    """Return the distance of each finished job from the one of its model in the finest precision, by their stats.npz.

    Jobs of another data set or other weights than that one's, and those without statistics, have none.

    Args:
        sweep_dir: the sweep's folder.
        jobs: its jobs' results, by their folders below it.
    """
    finished = {job: result for job, result in jobs.items() if result.status == "finished"}
    if are_partitions([*finished.values()]):
        return {}
    models: dict[str, dict[str, RunResult]] = {}
    for job, result in finished.items():
        models.setdefault(facts_of_result(result).workload["model"], {})[job] = result
    return {job: fad for own in models.values() for job, fad in _fads(sweep_dir, own).items()}


def _fads(sweep_dir: Path, jobs: Mapping[str, RunResult]) -> dict[str, SweepFad]:
    """Return the distances of one model's jobs."""
    if len(jobs) < 2:
        return {}
    reference = _reference(jobs)
    data = _data(jobs[reference])
    embeddings = {job: _embeddings(sweep_dir / job) for job, result in jobs.items() if _data(result) == data}
    base = embeddings[reference]
    if base is None:
        return {}
    return {
        job: SweepFad(job, reference, 0.0 if job == reference else frechet_distance(base, own))
        for job, own in embeddings.items()
        if own is not None
    }


def _reference(jobs: Mapping[str, RunResult]) -> str:
    """Return the job that the sentences on a sweep's quality compare with."""
    qualities = {job: quality_of(result) for job, result in jobs.items()}
    first = ranked_by_precision([*qualities.values()])[0]
    return next(job for job, quality in qualities.items() if quality is first)


def _data(result: RunResult) -> tuple[str | None, str | None]:
    dataset, weights = result.info.dataset, result.startup.weights
    return dataset.digest if dataset else None, weights.checksum if weights else None


def _embeddings(run_dir: Path) -> Gaussian | None:
    path = RunLayout(run_dir).statistics
    if not path.exists():
        return None
    try:
        summary = from_npz(str(path), path.read_bytes())
    except (RunnerError, OSError) as error:
        log.warning("no FAD of %s: %s", run_dir, error)
        return None
    return Gaussian.of_covariance(summary.mean, summary.covariance, summary.n)

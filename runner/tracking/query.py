"""Read runs from MLflow, for ``vggish-runner report``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contract.files import read_sweep, read_tracking
from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.reporting.comparability import FIRST_PASS
from runner.reporting.intervals import of_windows
from runner.reporting.logged_run import _SERIES, _row

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from runner.reporting.logged_run import Row

_MIN_PREFIX = 4
"""Characters of an abbreviated run id."""

_PAGE = 1000

_PARENT = "mlflow.parentRunId"


class MlflowReader:
    """Reads runs from an MLflow store.

    Args:
        client: MLflow's own.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def rows(self, queries: Sequence[str], default_experiment: str) -> list[Row]:
        """Return the runs that match queries; of a sweep, its jobs.

        Args:
            queries: ids (or their beginnings), names or folders of runs or sweeps, or experiments; empty for the
                default experiment.
            default_experiment: its name or id.

        Raises:
            RunnerError: a query matches nothing, or the beginnings of several ids.
        """
        runs: dict[str, Run] = {}
        for query in queries or [default_experiment]:
            matches = self._resolve(query)
            if not matches:
                raise RunnerError(f"{query} is no run, sweep, experiment or folder of one in this store")
            for match in matches:
                runs |= {run.info.run_id: run for run in self._children(match) or [match]}
        return [_row(run) for run in runs.values()]

    def blocks(self, row: Row, metric: str) -> tuple[float, ...]:
        """Return the blocks of speed behind a metric's interval; none for other metrics, and for a resumed run."""
        if metric not in _SERIES or row.facts.attempt > 1:
            return ()
        history = self._client.get_metric_history(row.run_id, _SERIES[metric])
        speeds = [point.value for point in sorted(history, key=lambda point: point.step)]
        return of_windows(speeds) if metric == FIRST_PASS else tuple(speeds)

    def plots(self, row: Row) -> list[tuple[str, bytes]]:
        """Return the plots of a run's sweep: their names, and the bytes of their PNG files."""
        parent = row.tags.get(_PARENT)
        if parent is None:
            return []
        from mlflow.artifacts import download_artifacts

        plots = []
        for artifact in self._client.list_artifacts(parent, "plots"):
            if artifact.path.endswith(".png"):
                uri = f"runs:/{parent}/{artifact.path}"
                path = download_artifacts(artifact_uri=uri, tracking_uri=self._client.tracking_uri)
                plots.append((Path(artifact.path).stem, Path(path).read_bytes()))
        return plots

    def _resolve(self, query: str) -> list[Any]:
        from mlflow.exceptions import MlflowException

        layout = RunLayout(Path(query))
        for path, read in ((layout.tracking, read_tracking), (layout.sweep, read_sweep)):
            if path.is_file():
                state = read(path)
                return self._resolve(state.run_id) if state and state.run_id else []
        try:
            return [self._client.get_run(query)]
        except MlflowException:
            pass
        experiments = {experiment.experiment_id: experiment.name for experiment in self._experiments()}
        if ids := [number for number, name in experiments.items() if query in (name, number)]:
            return self._search(ids)
        quoted = query.replace("\\", "\\\\").replace("'", "\\'")
        return self._search([*experiments], f"attributes.run_name = '{quoted}'") or self._by_prefix(
            query, [*experiments]
        )

    def _by_prefix(self, prefix: str, experiments: list[str]) -> list[Any]:
        """Return the run whose id has a prefix."""
        if len(prefix) < _MIN_PREFIX or not re.fullmatch(r"[0-9a-f]+", prefix):
            return []
        runs = self._search(experiments, f"attributes.run_id LIKE '{prefix}%'")
        if len(runs) > 1:
            ids = ", ".join(sorted(run.info.run_id for run in runs)[:4])
            raise RunnerError(f"{prefix} begins the ids of {len(runs)} runs ({ids}): give more characters")
        return runs

    def _children(self, run: Any) -> list[Any]:
        if _PARENT in run.data.tags or "sweep.overrides" not in run.data.tags:
            return []
        return self._search([run.info.experiment_id], f"tags.`{_PARENT}` = '{run.info.run_id}'")

    def _experiments(self) -> list[Any]:
        experiments: list[Any] = []
        token = None
        while True:
            page = self._client.search_experiments(max_results=_PAGE, page_token=token)
            experiments += page
            token = page.token
            if not token:
                return experiments

    def _search(self, experiments: Sequence[str], filter_text: str = "") -> list[Any]:
        """Return all matching runs, page by page."""
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([*experiments], filter_text, max_results=_PAGE, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

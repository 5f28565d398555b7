"""Runs as MLflow has them, for ``vggish-runner report``; nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.errors import RunnerError
from runner.core.layout import SWEEP_FILE, TRACKING
from runner.reporting.comparability import FIRST_PASS
from runner.reporting.intervals import of_windows
from runner.reporting.logged_run import _SERIES, _row

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from runner.reporting.logged_run import Row

_FEWEST = 4

_PAGE = 1000

_PARENT = "mlflow.parentRunId"


class Store:
    """An MLflow store, read only.

    Args:
        client: MLflow's own.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def rows(self, wanted: Sequence[str], default_experiment: str) -> list[Row]:
        """The runs that the words mean; of a sweep, its jobs.

        Args:
            wanted: ids (or beginnings of them) or names of runs, sweeps or experiments, or folders of runs or sweeps;
                none for the experiment.
            default_experiment: its name.

        Raises:
            RunnerError: a word means nothing here, or more than one run.
        """
        found: dict[str, Any] = {}
        for word in wanted or [default_experiment]:
            runs = self._resolve(word)
            if not runs:
                raise RunnerError(f"{word} is no run, sweep, experiment or folder of one in this store")
            for run in runs:
                for each in self._children(run) or [run]:
                    found[each.info.run_id] = each
        return [_row(run) for run in found.values()]

    def blocks(self, row: Row, metric: str) -> tuple[float, ...]:
        """What the interval of a run's speed is made from; nothing for other metrics, and for a resumed run."""
        if metric not in _SERIES or row.facts.attempt > 1:
            return ()
        history = self._client.get_metric_history(row.run_id, _SERIES[metric])
        speeds = [each.value for each in sorted(history, key=lambda each: each.step)]
        return of_windows(speeds) if metric == FIRST_PASS else tuple(speeds)

    def pictures(self, row: Row) -> list[tuple[str, bytes]]:
        """The pictures that were logged with the sweep of a run, by name."""
        parent = row.tags.get(_PARENT)
        if parent is None:
            return []
        from mlflow.artifacts import download_artifacts

        found = []
        for artifact in self._client.list_artifacts(parent, "plots"):
            if artifact.path.endswith(".png"):
                uri = f"runs:/{parent}/{artifact.path}"
                path = download_artifacts(artifact_uri=uri, tracking_uri=self._client.tracking_uri)
                found.append((Path(artifact.path).stem, Path(path).read_bytes()))
        return found

    def _resolve(self, word: str) -> list[Any]:
        from mlflow.exceptions import MlflowException

        for name in (TRACKING, SWEEP_FILE):
            if (state := Path(word) / name).is_file():
                run_id = json.loads(state.read_text(encoding="utf-8")).get("run_id")
                return self._resolve(run_id) if run_id else []
        try:
            return [self._client.get_run(word)]
        except MlflowException:
            pass
        experiments = {each.experiment_id: each.name for each in self._experiments()}
        if named := [number for number, name in experiments.items() if word in (name, number)]:
            return self._search(named)
        quoted = word.replace("\\", "\\\\").replace("'", "\\'")
        return self._search([*experiments], f"attributes.run_name = '{quoted}'") or self._begins(word, [*experiments])

    def _begins(self, word: str, experiments: list[str]) -> list[Any]:
        """The run whose id begins with a word."""
        if len(word) < _FEWEST or not re.fullmatch(r"[0-9a-f]+", word):
            return []
        found = self._search(experiments, f"attributes.run_id LIKE '{word}%'")
        if len(found) > 1:
            ids = ", ".join(sorted(run.info.run_id for run in found)[:4])
            raise RunnerError(f"{word} begins the ids of {len(found)} runs ({ids}): give more of the one that is meant")
        return found

    def _children(self, run: Any) -> list[Any]:
        if _PARENT in run.data.tags or "sweep.overrides" not in run.data.tags:
            return []
        return self._search([run.info.experiment_id], f"tags.`{_PARENT}` = '{run.info.run_id}'")

    def _experiments(self) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_experiments(max_results=_PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _search(self, experiments: Sequence[str], filter_text: str = "") -> list[Any]:
        """All runs, page by page."""
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([*experiments], filter_text, max_results=_PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

"""Addresses in MLflow's UI, each of which opens in the menu of model training.

From 3.x on the UI has two menus.  It takes that of its address' ``workflowType``, else the one that was last chosen in
the browser, else "GenAI"; an experiment's ``mlflow.experimentKind`` decides in versions before that alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

VIEW = "vggish"
"""A view of the experiment that the MLflow UI shows with ``viewStateShareKey``: the run list with columns of use."""

_MODEL_TRAINING = "workflowType=machine_learning"


def run_list_page(experiment_id: str) -> str:
    """The experiment's runs, in the columns of ``VIEW``."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&{_MODEL_TRAINING}"


def run_page(experiment_id: str, run_id: str) -> str:
    """A run, or a sweep's parent."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_MODEL_TRAINING}"


def compare_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Runs of one experiment beside each other."""
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in ([*run_ids], [experiment_id]))
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{_MODEL_TRAINING}"

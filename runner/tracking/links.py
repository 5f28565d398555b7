"""Addresses in MLflow's UI that open its model training menu.

From 3.x on the UI has two menus.  It shows that of the address's ``workflowType``, else the one last chosen in the
browser, else "GenAI".  In earlier versions the experiment's ``mlflow.experimentKind`` decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

VIEW = "vggish"
"""Name of the experiment's shared view: the list of runs that ``viewStateShareKey`` opens, with our columns."""

_MODEL_TRAINING = "workflowType=machine_learning"


def run_list_page(experiment_id: str) -> str:
    """Return the page of the experiment's runs, with the columns of ``VIEW``."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&{_MODEL_TRAINING}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the page of a run, or of a sweep's parent run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_MODEL_TRAINING}"


def compare_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the page that compares runs of one experiment."""
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in ([*run_ids], [experiment_id]))
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{_MODEL_TRAINING}"

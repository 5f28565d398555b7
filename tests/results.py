"""Made-up results of runs, for tests of what is made of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from runner.config.composition import compose_config
from runner.contract.files import SCHEMA_VERSION, result_from_json
from runner.contract.result import RunResult


@functools.cache
def _config() -> dict[str, Any]:
    return compose_config(["weights=random", "dataset=demo"]).to_dict()


def _complete() -> dict[str, dict[str, Any]]:
    """A value for each field of the parts of a result that must have one."""
    decision = {"requested": "cpu", "effective": "cpu", "name": "CPU", "reason": "asked", "fallback_reason": None}
    effect = {"effective": "none", "reason": "asked"}
    weights = {"requested": "random", "source": "random", "path": None, "seed": 0, "reason": "asked"}
    tolerance = vars(compose_config(["weights=random", "dataset=demo"]).parity.tolerances["float32"])
    return {
        "device": {**decision, "index": 0, "count": 1},
        "precision": {"requested": "float32", "effective": "float32", "reason": "asked"},
        "weights": {**weights, "is_random": True},
        "model": {"conv": {"requested": "auto", **effect}, "compiler": effect, "copies": effect},
        "dataset": {"root": "/data", "digest": "d" * 32, "clips": 3},
        "parity": {
            "passed": True,
            "misses": [],
            "action": "fail",
            "tolerance": tolerance,
            "dtypes": ["float32"],
            "reference": "NumPy float64",
            "measured_by": "host:1",
        },
        "batch_size_curve": {"reason": "asked"},
        "failure": {"kind": "exception", "message": "it failed"},
    }


def to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The object of a result.json with these values, and others where a field must have one."""
    complete = _complete()
    filled = {
        key: {**complete[key], **value} if key in complete and isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    config = _config() | {group: _config()[group] | own for group, own in filled.get("config", {}).items()}
    required = {"schema_version": SCHEMA_VERSION, "run_name": "run", "run_dir": "/run", "started_at": 0.0}
    return {**required, "ended_at": 0.0, "status": "finished", **filled, "config": config}


def make_result(values: Mapping[str, Any]) -> RunResult:
    """A result with these values of result.json, and others where a field must have one."""
    return result_from_json(to_json(values), RunResult)

"""Made-up specs and results of runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runner.config.schema import ModelConfig, RunConfig
from runner.contract.files import SCHEMA_VERSION, result_from_json
from runner.contract.result import RunResult
from runner.contract.spec import DatasetSummary, RunSpec
from runner.core.span import Span
from runner.weights.selection import WeightsChoice
from tests.configs import make_config


@functools.cache
def _config() -> dict[str, Any]:
    return asdict(make_config(["weights=random", "dataset=demo"]))


def _complete() -> dict[str, dict[str, Any]]:
    """A value for each field of the parts of a result that must have one."""
    decision = {"requested": "cpu", "effective": "cpu", "name": "CPU", "reason": "asked", "fallback_reason": None}
    effect = {"effective": "none", "reason": "asked"}
    weights = {"requested": "random", "source": "random", "path": None, "seed": 0, "reason": "asked"}
    return {
        "device": {**decision, "index": 0, "count": 1},
        "precision": {"requested": "float32", "effective": "float32", "reason": "asked"},
        "weights": {**weights, "is_random": True},
        "model": {"conv": {"requested": "auto", **effect}, "compiler": effect, "copies": effect},
        "dataset": {"root": "/data", "digest": "d" * 32, "clips": 3},
        "parity": {
            "passed": True,
            "misses": [],
            "action": "strict",
            "tolerance": _config()["parity"]["tolerances"]["float32"],
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


def make_spec(folder: Path, config: RunConfig, **changes: Any) -> RunSpec:
    """A spec for a run in a folder: one shard of two clips, random weights."""
    spec = RunSpec(
        config=config,
        run_dir=folder,
        manifest=folder / ".runner" / "manifest.parquet",
        dataset=DatasetSummary("/data", "d", 2),
        shards=(Span(0, 2),),
        row_digests=("rows",),
        weights=WeightsChoice("random", "random", None, None, 0, "for a test", True),
    )
    return replace(spec, **changes)


def with_metrics(result: RunResult, **metrics: float) -> RunResult:
    """The result with more metrics, or with other values of them."""
    return replace(result, metrics={**result.metrics, **metrics})


def with_model(result: RunResult, model: ModelConfig) -> RunResult:
    """The result of a run of another model."""
    return replace(result, info=replace(result.info, config=replace(result.info.config, model=model)))


def with_config(result: RunResult, **groups: Mapping[str, Any]) -> RunResult:
    """The result of another configuration: some keys of some groups."""
    config = result.info.config
    changed = {group: replace(getattr(config, group), **keys) for group, keys in groups.items()}
    return replace(result, info=replace(result.info, config=replace(config, **changed)))

"""The one reader and the one writer of spec.json, result.json, sweep.json and tracking.json; writes evaluation.json."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runner.config.schema import RunConfig, from_dict
from runner.contract.result import RunInfo, RunResult, RunStats, Startup, WorkerResult
from runner.contract.spec import RunSpec
from runner.contract.sweep import SweepState
from runner.contract.tracking import TrackingState
from runner.core.errors import ResumeError, RunnerError
from runner.core.files import write_atomic
from runner.core.layout import RunLayout
from runner.core.readable import Json, json_object, read_json
from runner.core.span import Span

if TYPE_CHECKING:
    from cattrs import Converter

    from runner.contract.evaluation import EvaluationReport

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
"""Of spec.json and result.json; raised with every change that an older or newer runner would misread."""

TRACKING_VERSION = 1
"""Of tracking.json."""

EVALUATION_VERSION = 1
"""Of evaluation.json."""

_VERSION, _EVALUATION_VERSION = "schema_version", "schema"

_FLAT = {"info": RunInfo, "startup": Startup, "stats": RunStats}
"""Fields of a result whose own fields are the file's."""

_NOT_IN_FILE = ("mlflow_run_id", "fad")

_Read = TypeVar("_Read")


def write_spec(path: Path, spec: RunSpec) -> None:
    """Write spec.json."""
    write_atomic(path, json.dumps({_VERSION: SCHEMA_VERSION, **_converter().unstructure(spec)}, indent=2))


def read_spec(path: Path) -> RunSpec:
    """Read spec.json.

    Raises:
        ResumeError: it can't be read, or another version of the runner wrote it.
    """
    return _read(path, RunSpec)


def write_result(path: Path, result: WorkerResult) -> None:
    """Write result.json."""
    write_atomic(path, json.dumps(result_to_json(result), indent=2))


def read_result(path: Path) -> RunResult:
    """Read result.json as the command left it.

    Raises:
        ResumeError: it can't be read, another version of the runner wrote it, or it is the worker's alone.
    """
    return _read(path, RunResult)


def parse_result(name: str, content: bytes | None) -> RunResult | None:
    """Read the content of a result.json as the command left it; None, with a warning, where it can't be read."""
    if content is None:
        return None
    try:
        return _parse(name, json_object(content), RunResult)
    except (ResumeError, ValueError) as error:
        log.warning("%s", error if isinstance(error, ResumeError) else f"{name} can't be read ({error})")
        return None


def parse_status(content: bytes | None) -> str | None:
    """Return the status in the content of a result.json of any version; None if there is none."""
    try:
        status = json_object(content or b"{}").get("status")
    except ValueError:
        return None
    return None if status is None else str(status)


def read_worker_result(path: Path) -> WorkerResult:
    """Read the worker's part of result.json.

    Raises:
        ResumeError: it can't be read, or another version of the runner wrote it.
    """
    return _read(path, WorkerResult)


def read_results(folders: Iterable[Path]) -> list[RunResult]:
    """Read the result.json of each run's folder that has one; one that can't be read is a warning."""
    results = []
    for folder in folders:
        path = RunLayout(folder).result
        try:
            if path.exists():
                results.append(read_result(path))
        except ResumeError as error:
            log.warning("%s", error)
    return results


def read_jobs(sweep_dir: Path, run_dirs: Iterable[Path]) -> dict[str, RunResult]:
    """Read the results of a sweep's jobs as ``read_results`` does, by their names in sweep.json.

    They have the distances that sweep.json has.
    """
    fads = {fad.job: fad for fad in read_sweep(RunLayout(sweep_dir).sweep).fads}
    names = {run_dir: os.path.relpath(run_dir, sweep_dir) for run_dir in run_dirs}
    return {
        name: replace(result, fad=fads.get(name))
        for run_dir, name in names.items()
        for result in read_results([run_dir])
    }


def write_sweep(path: Path, state: SweepState) -> None:
    """Write sweep.json."""
    write_atomic(path, json.dumps(_converter().unstructure(state), indent=2))


def read_sweep(path: Path) -> SweepState:
    """Read sweep.json.

    Raises:
        ResumeError: it can't be read.
    """
    return _structure(path, read_json(path), SweepState)


def parse_sweep(name: str, content: bytes) -> SweepState:
    """Read the content of a sweep.json.

    Raises:
        ResumeError: it can't be read.
    """
    try:
        values = json_object(content)
    except ValueError as error:
        raise ResumeError(f"{name} can't be read ({error}): rerun the sweep's command") from error
    return _structure(name, values, SweepState)


def write_tracking(path: Path, state: TrackingState) -> None:
    """Write tracking.json."""
    write_atomic(path, json.dumps({_VERSION: TRACKING_VERSION, **_converter().unstructure(state)}, indent=2))


def read_tracking(path: Path) -> TrackingState | None:
    """Read tracking.json; see ``parse_tracking``."""
    return parse_tracking(str(path), path.read_bytes() if path.exists() else None)


def parse_tracking(name: str, content: bytes | None) -> TrackingState | None:
    """Read the content of a tracking.json; None if there is none, or it is damaged, as of a run that was never logged.

    Raises:
        ResumeError: another version of the runner wrote it.
    """
    try:
        values = json.loads(content or b"{}")
        version = values.get(_VERSION, TRACKING_VERSION)
    except (ValueError, AttributeError):
        return None
    if version != TRACKING_VERSION:
        raise ResumeError(_other_version(name, version, TRACKING_VERSION))
    try:
        return _converter().structure(values, TrackingState)
    except Exception:  # cattrs groups the errors of all fields
        return None


def write_evaluation_report(path: Path, report: EvaluationReport) -> None:
    """Write evaluation.json."""
    values = {_EVALUATION_VERSION: EVALUATION_VERSION, **asdict(report.quality), **asdict(report)}
    del values["quality"]
    write_atomic(path, json.dumps({key: value for key, value in values.items() if value is not None}, indent=2))


def result_to_json(result: WorkerResult) -> dict[str, Json]:
    """The flat object of result.json; what is None is left out."""
    values = _converter().unstructure(result)
    flat: dict[str, Json] = {_VERSION: SCHEMA_VERSION}
    for name in ("info", *(name for name in values if name not in _NOT_IN_FILE)):
        flat |= values.get(name, {}) if name in _FLAT else {name: values[name]}
    return {key: value for key, value in flat.items() if value is not None}


def result_from_json(values: Mapping[str, Json], kind: type[_Read]) -> _Read:
    """Make a ``RunResult`` or ``WorkerResult`` of the flat object of result.json."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    parts = {name: values for name in _FLAT if name in names}
    return _converter().structure({**values, **parts}, kind)


def _read(path: Path, kind: type[_Read]) -> _Read:
    return _parse(path, read_json(path), kind)


def _parse(path: Path | str, values: Mapping[str, Json], kind: type[_Read]) -> _Read:
    version = values.get(_VERSION, values.get("schema", 1))
    if version != SCHEMA_VERSION:
        raise ResumeError(_other_version(path, version, SCHEMA_VERSION))
    if kind is RunResult and "run_name" not in values:
        raise ResumeError(f"{path} is of a run whose command ended before it: rerun the same command to complete it")
    return _structure(path, values, kind)


def _other_version(path: Path | str, version: object, own: int) -> str:
    return (
        f"{path} is of version {version} of the runner's files, and this runner reads version {own}: "
        "use the runner that wrote it, or run the same command into another output.dir"
    )


def _structure(path: Path | str, values: Mapping[str, Json], kind: type[_Read]) -> _Read:
    from cattrs import transform_error

    try:
        if issubclass(kind, WorkerResult):
            return result_from_json(values, kind)
        return _converter().structure(values, kind)
    except Exception as error:
        reason = transform_error(error, format_exception=_describe)[0]
        raise ResumeError(
            f"{path} can't be read ({reason}): rerun the same command to have it written again"
        ) from error


def _describe(error: BaseException, kind: type | None) -> str:
    from cattrs.v import format_exception

    return str(error) if isinstance(error, RunnerError) else format_exception(error, kind)


@functools.cache
def _converter() -> Converter:
    from cattrs.preconf.json import make_converter

    converter = make_converter()
    converter.register_structure_hook(RunConfig, lambda value, _: from_dict(value))
    converter.register_unstructure_hook(RunConfig, asdict)
    converter.register_structure_hook(Span, lambda value, _: Span(*map(int, value)))
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_unstructure_hook(Path, str)
    return converter

"""Names of runs: the setting, and in a sweep whatever else distinguishes its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.errors import ResumeError

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.contract.result import RunResult, Startup

SWEPT = "swept"
"""Key of sweep.json: the settings that differ between a sweep's jobs, each with all its values."""

ROUND = "profile.round"
"""Setting that distinguishes the rounds of a sweep: runs that differ in nothing else are one variant."""

_ELSEWHERE = ("output.dir", "tracking.", "paths.")
"""Settings of locations, which distinguish no jobs."""

_GROUP_NAMES = (".name", ".kind")


def swept_settings(jobs: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Find the settings that distinguish jobs, each with all its values; of several that change together the first.

    Args:
        jobs: the parameters of each, as ``config_params`` makes them.
    """
    keys = [key for key in dict.fromkeys(key for job in jobs for key in job) if not key.startswith(_ELSEWHERE)]
    keys.sort(key=lambda key: not key.endswith(_GROUP_NAMES))
    swept: list[str] = []
    distinct = 1
    for key in keys:
        combinations = len({tuple(job.get(name, "") for name in [*swept, key]) for job in jobs})
        if combinations > distinct:
            swept.append(key)
            distinct = combinations
    return {key: list(dict.fromkeys(job.get(key, "") for job in jobs)) for key in swept}


def setting_name(key: str) -> str:
    """Return a parameter's name on the command line: ``memory`` for memory.name, ``device`` for device.requested."""
    return key.rpartition(".")[0] if key.endswith((*_GROUP_NAMES, ".requested")) else key


def swept_of(params: Mapping[str, str], sweep_file: Path | str | None) -> dict[str, str]:
    """Return a job's values of its sweep's settings, as they are shown: ``hop_s`` for ``frontend.hop_s``, short paths.

    Args:
        params: the job's, of ``config_params``.
        sweep_file: the sweep's sweep.json; empty of settings, or none at all, for a run by itself.
    """
    from runner.contract.files import read_sweep  # heavy: --help of report does without

    try:
        swept = read_sweep(Path(sweep_file)).swept if sweep_file else {}
    except ResumeError:
        return {}
    shown = _short_keys(list(swept))
    return {shown[key]: _short_value(params.get(key, ""), values) for key, values in swept.items()}


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    def short(key: str) -> str:
        return key.rpartition(".")[0] if key.endswith(_GROUP_NAMES) else key.rpartition(".")[2]

    names = [short(key) for key in keys]
    return {key: key if key == ROUND or names.count(short(key)) > 1 else short(key) for key in keys}


def _short_value(value: str, values: Sequence[str]) -> str:
    """A path without its beginning, as far as it still differs from the other values."""
    parts = value.split("/")
    for count in range(1, len(parts)):
        ends = {path: "/".join(path.split("/")[-count:]) for path in {*values, value}}
        if len(set(ends.values())) == len(ends):
            return ends[value]
    return value


def run_name(config: RunConfig, swept: Mapping[str, str], startup: Startup | None = None) -> str:
    """Name a run by effective device, memory policy, effective precision, and its values of swept settings.

    Args:
        config: the run's.
        swept: its own values of its sweep's settings.
        startup: what took effect; None before it is known.
    """
    device, precision = (startup.device, startup.precision) if startup else (None, None)
    own_name = config.tracking.run_name
    effective = {
        "device": device.effective if device else config.device.name,
        "memory": config.memory.name,
        "precision": precision.effective if precision else config.precision.name,
    }
    name, shown = own_name or "-".join(effective.values()), dict(swept)
    if not own_name and device and device.fallback_reason:
        name += f" ({config.device.name} absent)"
        shown.pop("device", None)
    implied = {} if own_name else effective
    return " ".join([name, *(f"{_last(key)}={value}" for key, value in shown.items() if implied.get(key) != value)])


def variant_name(result: RunResult) -> str:
    """Name the setting that a run measured: rounds of the same setting have the same name."""
    swept = dict(result.info.swept)
    if swept.pop(ROUND, None) is None:
        return result.info.run_name
    return run_name(result.info.config, swept, result.startup)


def _last(key: str) -> str:
    return "round" if key == ROUND else key

"""What a run is called: its setting, and in a sweep whatever else tells its jobs apart."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config.params import config_params

SWEPT = "swept"
"""Key of sweep.json: the settings that differ between a sweep's jobs, each with all its values."""

ROUND = "profile.round"
"""Setting that only tells the rounds of a sweep apart: runs that differ in nothing else are one variant."""

_ELSEWHERE = ("output.dir", "tracking.", "paths.")
"""Settings of where things are put, which tell no jobs apart."""

_GROUP_NAMES = (".name", ".kind")


def swept_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The settings that tell jobs apart, each with all its values; of several that change together the first.

    Args:
        configs: of all jobs, nested.
    """
    jobs = [config_params(config) for config in configs]
    keys = [key for key in dict.fromkeys(key for job in jobs for key in job) if not key.startswith(_ELSEWHERE)]
    keys.sort(key=lambda key: not key.endswith(_GROUP_NAMES))
    found: list[str] = []
    told_apart = 1
    for key in keys:
        several = len({tuple(job.get(each, "") for each in [*found, key]) for job in jobs})
        if several > told_apart:
            found.append(key)
            told_apart = several
    return {key: list(dict.fromkeys(job.get(key, "") for job in jobs)) for key in found}


def setting_name(key: str) -> str:
    """What a command line calls a parameter: ``memory`` for memory.name, ``device`` for device.requested."""
    return key.rpartition(".")[0] if key.endswith((*_GROUP_NAMES, ".requested")) else key


def swept_of(config: Mapping[str, Any], sweep_file: Path | str | None) -> dict[str, str]:
    """A job's own values of its sweep's settings, as they are shown: ``hop_s`` for ``frontend.hop_s``, paths shortened.

    Args:
        config: the job's, nested.
        sweep_file: the sweep's sweep.json; empty of settings, or none at all, for a run by itself.
    """
    try:
        swept = json.loads(Path(sweep_file or os.devnull).read_text(encoding="utf-8")).get(SWEPT) or {}
    except (OSError, ValueError):
        return {}
    own, shown = config_params(config), _short_keys(list(swept))
    return {shown[key]: _short_value(own.get(key, ""), values) for key, values in swept.items()}


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    def short(key: str) -> str:
        return key.rpartition(".")[0] if key.endswith(_GROUP_NAMES) else key.rpartition(".")[2]

    several = [short(key) for key in keys]
    return {key: key if key == ROUND or several.count(short(key)) > 1 else short(key) for key in keys}


def _short_value(value: str, values: Sequence[str]) -> str:
    """A path without its beginning, as far as it still differs from the other values."""
    parts = value.split("/")
    for count in range(1, len(parts)):
        ends = {each: "/".join(each.split("/")[-count:]) for each in {*values, value}}
        if len(set(ends.values())) == len(ends):
            return ends[value]
    return value


def run_name(result: Mapping[str, Any]) -> str:
    """A name that a person recognises: effective device, memory policy, effective precision, and what was swept."""
    config, swept = result["config"], dict(result.get(SWEPT) or {})
    device, precision = result.get("device") or {}, result.get("precision") or {}
    named = config["tracking"]["run_name"]
    effective = {
        "device": str(device.get("effective", config["device"]["name"])),
        "memory": str(config["memory"]["name"]),
        "precision": str(precision.get("effective", config["precision"]["name"])),
    }
    name = str(named) if named else "-".join(effective.values())
    if not named and device.get("fallback_reason"):
        name += f" ({config['device']['name']} absent)"
        swept.pop("device", None)
    told = {} if named else effective
    return " ".join([name, *(f"{_last(key)}={value}" for key, value in swept.items() if told.get(key) != value)])


def variant_name(result: Mapping[str, Any]) -> str:
    """The name of what a run measured: rounds of the same have the same."""
    swept = dict(result.get(SWEPT) or {})
    if swept.pop(ROUND, None) is None:
        return str(result["run_name"])
    return run_name({**result, SWEPT: swept})


def _last(key: str) -> str:
    return "round" if key == ROUND else key

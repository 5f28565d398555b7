"""plan.json: the shards of a run, and the settings that may not change when it is resumed; and its list of attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.fingerprint import fingerprint
from runner.config.groups.model import VGGishConfig
from runner.core.errors import ConfigError
from runner.core.files import write_atomic
from runner.core.layout import FORMAT_FOLDERS, RunLayout
from runner.core.paths import display_location
from runner.core.span import Span
from runner.dataset.table import PartitionInfo

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.core.readable import Json

PLAN_SCHEMA = 3
"""Version of plan.json, of the journal and of commit objects."""

_EARLY_MODEL: dict[str, Any] = {
    f"model.{key.name}": key.default for key in fields(VGGishConfig) if not key.metadata.get("free")
}
"""Settings of the model that plans of earlier versions lack: VGGish's."""


@dataclass(frozen=True)
class StoredPlan:
    """The content of plan.json.

    Attributes:
        id: of the run, whatever changes in its data set.
        settings: by dotted key, those that decide numbers and files; see ``runner.config.fingerprint``.
        shards: the rows of manifest.parquet in each shard.
        row_digests: of each shard's rows; see ``runner.dataset.digests``.
        partition: of the data set; None for all of it.
    """

    id: str
    settings: Mapping[str, Json]
    shards: list[Span]
    row_digests: list[str]
    partition: PartitionInfo | None = None

    @property
    def clips(self) -> int:
        """The number of clips in all shards."""
        return self.shards[-1].end if self.shards else 0


def write_plan(folder: Path, plan: StoredPlan) -> None:
    """Write a run's plan.json atomically."""
    write_atomic(RunLayout(folder).plan, json.dumps({"schema": PLAN_SCHEMA, **asdict(plan)}))


def read_plan(folder: Path) -> StoredPlan | None:
    """Read a run's plan.json; return None if there is none.

    Raises:
        ConfigError: it can't be read, or is of another version.
    """
    path = RunLayout(folder).plan
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error}): choose another folder, or move that run away") from error
    return parse_plan(str(path), text)


def parse_plan(location: str, text: bytes) -> StoredPlan:
    """Parse the text of a plan.json.

    Args:
        location: where it is, for messages.
        text: its bytes.

    Raises:
        ConfigError: it is not JSON, or of another version.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{location} can't be read ({error}): choose another folder, or move that run away"
        ) from error
    try:
        if values["schema"] != PLAN_SCHEMA:
            raise ValueError("another version")
        return StoredPlan(
            id=values["id"],
            settings=({} if "model.name" in values["settings"] else _EARLY_MODEL) | values["settings"],
            shards=[Span(int(first), int(end)) for first, end in values["shards"]],
            row_digests=list(values["row_digests"]),
            partition=PartitionInfo.from_json(values["partition"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{location} is not of this version of the runner: choose another folder") from error


def check_output_folder(folder: Path, config: RunConfig) -> None:
    """Check that a run of this configuration may use ``folder``: it is free, or holds the same run.

    Raises:
        ConfigError: it holds a run of other settings (the message lists them), or another kind of output.
    """
    plan, location = read_plan(folder), display_location(config.output.dir, folder)
    if plan is None:
        if any((folder / name).exists() for name in (RunLayout.result, *FORMAT_FOLDERS, RunLayout.sweep)):
            raise ConfigError(
                f"output.dir={location} already holds a run: choose another folder, or move that run away"
            )
        return
    current, started = fingerprint(config), plan.settings
    keys = [key for key in sorted({*current, *started}) if current.get(key) != started.get(key)]
    other_version = [key for key in keys if key not in current or key not in started]
    if other_version and not any(key.endswith(".name") for key in keys):  # other options may have other keys
        raise ConfigError(
            f"output.dir={location} already holds a run of another version of the runner, which differs in the keys "
            f"{', '.join(other_version)}: resume it with that version, or choose another folder"
        )
    if keys:
        differences = ", ".join(f"{key} ({started.get(key)} there, {current.get(key)} now)" for key in keys)
        raise ConfigError(
            f"output.dir={location} already holds a run of another configuration: {differences}. "
            "Give the same settings to resume it, or choose another folder"
        )


def begin_attempt(folder: Path, started_at: float, overrides: Sequence[str] = ()) -> int:
    """Append an attempt at the run to attempts.jsonl; return its number, from 1.

    Args:
        folder: the run's.
        started_at: when it begins, in seconds since the epoch.
        overrides: of its command line.
    """
    attempt = {"started_at": started_at, "overrides": list(overrides)}
    path = RunLayout(folder).attempts
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(attempt) + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())


def first_attempt_at(folder: Path) -> float | None:
    """Return when the run's first attempt started, in seconds since the epoch; None if that is not known."""
    try:
        with RunLayout(folder).attempts.open(encoding="utf-8") as file:
            return float(json.loads(file.readline())["started_at"])
    except (OSError, ValueError, KeyError):
        return None

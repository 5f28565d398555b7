"""The command line that repeats a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from runner.config.quoting import shell_override
from runner.core.paths import conf_dir
from runner.core.redact import without_credentials


def command_line(overrides: Sequence[str], multirun: bool = False, output_dir: str | None = None) -> str:
    """Return the command that repeats a run (or a sweep), quoted for Hydra and a shell, without credentials.

    That of one job of a sweep leaves out the overrides that make the sweep.

    Args:
        overrides: as they were typed, options such as ``--config-dir=DIR`` in front.
        multirun: whether they are a sweep's.
        output_dir: the ``output.dir`` to write to; None: a new folder.
    """
    sweeping = [override for override in overrides if _makes_a_sweep(override, overrides)]
    repeated = [override for override in overrides if not override.lstrip("+").startswith("output.dir=")]
    if not multirun:
        repeated = [each for each in repeated if each not in sweeping or _experiment_file(each, overrides)]
        if any(_experiment_file(each, overrides) for each in repeated if each in sweeping):
            repeated.append("hydra.mode=RUN")  # an experiment of the user's may set more than its sweep
    options = ["-m"] if multirun and not sweeping else []
    command = shlex.join(["python", "-m", "runner", *options, *map(without_credentials, repeated)])
    return f"{command} {shell_override('output.dir', output_dir)}" if output_dir is not None else command


def _makes_a_sweep(override: str, overrides: Sequence[str]) -> bool:
    key, _, value = override.lstrip("+").partition("=")
    if key == "experiment":
        path = _experiment_file(override, overrides) or conf_dir() / "experiment" / f"{value}.yaml"
        return path.exists() and "mode: MULTIRUN" in path.read_text(encoding="utf-8")
    return key.startswith(("hydra.", "hydra/"))


def _experiment_file(override: str, overrides: Sequence[str]) -> Path | None:
    """Return the file of an experiment in a configuration folder that the command line names."""
    key, _, value = override.lstrip("+").partition("=")
    options = ("--config-dir=", "--config-path=")
    folders = [option.partition("=")[2] for option in overrides if option.startswith(options)]
    paths = [Path(folder) / "experiment" / f"{value}.yaml" for folder in folders]
    return next((path for path in paths if key == "experiment" and path.is_file()), None)

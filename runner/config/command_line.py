"""The command line that repeats a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from runner.config.quoting import shell_override
from runner.core.paths import conf_dir
from runner.core.redact import without_credentials


def command_line(overrides: Sequence[str], multirun: bool = False, output_dir: str | None = None) -> str:
    """The command that repeats a run (or a sweep), quoted for Hydra and a shell, without credentials.

    That of one job of a sweep leaves out what makes it one of many.

    Args:
        overrides: as they were typed, options such as ``--config-dir=DIR`` in front.
        multirun: whether they are a sweep's.
        output_dir: where the command's files are to go; None: into a new folder, as a finished run's is taken.
    """
    sweeps = [each for each in overrides if _makes_a_sweep(each, overrides)]
    kept = [each for each in overrides if not each.lstrip("+").startswith("output.dir=")]
    if not multirun:
        kept = [each for each in kept if each not in sweeps or _experiment_file(each, overrides)]
        if any(_experiment_file(each, overrides) for each in kept if each in sweeps):
            kept.append("hydra.mode=RUN")  # an experiment of the user's own may hold more than its sweep
    many = ["-m"] if multirun and not sweeps else []
    words = shlex.join(["python", "-m", "runner", *many, *map(without_credentials, kept)])
    return f"{words} {shell_override('output.dir', output_dir)}" if output_dir is not None else words


def _makes_a_sweep(override: str, overrides: Sequence[str]) -> bool:
    key, _, value = override.lstrip("+").partition("=")
    if key == "experiment":
        path = _experiment_file(override, overrides) or conf_dir() / "experiment" / f"{value}.yaml"
        return path.exists() and "mode: MULTIRUN" in path.read_text(encoding="utf-8")
    return key.startswith(("hydra.", "hydra/"))


def _experiment_file(override: str, overrides: Sequence[str]) -> Path | None:
    """The file of an experiment of the user's own, in a folder that the command line named."""
    key, _, value = override.lstrip("+").partition("=")
    folders = [each.partition("=")[2] for each in overrides if each.startswith(("--config-dir=", "--config-path="))]
    paths = [Path(folder) / "experiment" / f"{value}.yaml" for folder in folders]
    return next((path for path in paths if key == "experiment" and path.is_file()), None)

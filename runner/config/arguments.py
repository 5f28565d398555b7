"""The words of a command line before Hydra has them: what it can't read, or would store, is refused in one sentence."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn

from runner.config.quoting import shell_override
from runner.config.schema import SCHEMAS, PathsConfig
from runner.core.errors import ConfigError
from runner.core.redact import without_credentials

_TYPES = {
    f"{group.partition('_')[0]}.{each.name}": str(each.type)
    for group, schema in {**SCHEMAS, "paths": PathsConfig}.items()
    for each in fields(schema)
}

_TEXTS = {key for key, kind in _TYPES.items() if kind in ("str", "str | None")}

_LISTS = {key for key, kind in _TYPES.items() if kind.startswith("list[")}

_KEY = re.compile(r"(\+{0,2}|~)[\w$./@:\-]+", re.ASCII)

_SHELLS = ("bash", "zsh", "fish")

_SECRET_NAME = r"\w*(SECRET|PASSWORD|TOKEN|KEY|CREDENTIAL)\w*"

_SECRET = re.compile(rf"env_set\.{_SECRET_NAME}$", re.IGNORECASE)

_SECRET_OF_ACTORS = re.compile(rf"{_SECRET_NAME}['\"]?\s*[:=]", re.IGNORECASE)

RENAMED = {
    "dataset.fetch_ahead": "dataset.prefetch",
    "dataset.fetch_timeout_s": "dataset.download_timeout_s",
    "dataset.clip_timeout_s": "dataset.decode_timeout_s",
    "dataset.max_clip_s": "dataset.max_duration_s",
    "dataset.allow_outside": "dataset.allow_paths_outside_root",
    "output.put_timeout_s": "output.upload_timeout_s",
    "output.shard_clips": "output.clips_per_shard",
    "memory.host_memory_mib": "memory.host_limit_mib",
    "memory.batch_size_by_device": "memory.default_batch_size",
    "engine.stop_grace_s": "engine.shutdown_timeout_s",
    "engine.concurrency": "engine.min_size and engine.max_size",
    "profile.device_speed_s": "profile.device_benchmark_s",
    "profile.min_seconds": "profile.repeat_s",
    "profile.pictures": "profile.plots",
    "profile.map": "profile.projection",
    "profile.curve": "profile.batch_size_curve",
    "parity.action": "parity=strict, parity=warn or parity=off",
    "dataset.audio": "dataset.audio_column",
    "dataset.name": "dataset.name_column for a Parquet column, or dataset=OPTION for another data set",
    "dataset.label": "dataset.label_column",
    **{f"{group}.kind": f"{group}=OPTION" for group in ("weights", "dataset", "engine", "tracking")},
    "parity=gate": "parity=strict",
    "frontend.resampler=reference": "frontend.resampler=kaiser_best",
    "output=parquet": "output.formats=[parquet]",
    "output=npz": "output.formats=[npz]",
    "output=tfrecord": "output.formats=[tfrecord] output.postprocess=audioset",
}
"""Keys, or options of keys, of earlier versions, and their names now."""

RENAMED_RESOLVERS = {"runner_models": "runner.models_dir", "runner_outputs": "runner.outputs_root"}
RENAMED_RESOLVERS |= {"runner_dir": "runner.output_dir", "runner_devices": "runner.devices"}
"""Interpolations of earlier versions, ``${runner_devices:}``, and their names now."""

_INSTEAD = {
    "tracking.uri": "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole address as "
    "MLFLOW_TRACKING_URI, in the environment",
    "weights.base_url": "downloads take them from ~/.netrc",
}
"""Where credentials are looked for, by the key whose address must not have them."""


def check_arguments(given: Sequence[str]) -> list[str]:
    """A command line as Hydra takes it: with its options in front, wherever they were.

    Raises:
        ConfigError: an option that is none, options that exclude one another, or as ``check_overrides`` does.
    """
    from hydra._internal.utils import get_args_parser

    def fail(message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help and --hydra-help)")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    found = parser.parse_intermixed_args(list(given))
    asked = {"--cfg": found.cfg, "--info": found.info, "-sc": found.shell_completion}
    asked |= {"--multirun": found.multirun, "--run": found.run}
    chosen = [name for name, value in asked.items() if value]
    if len(chosen) > 1:
        fail(f"{' and '.join(chosen)} can't be had together: leave one of them out")
    for name in ("resolve", "package"):
        if getattr(found, name) and not found.cfg:
            fail(f"--{name} is for showing the configuration: add --cfg job")
    if found.experimental_rerun is not None:
        fail("--experimental-rerun needs a pickled configuration, which runs don't leave: give the command again")
    if found.shell_completion:
        _check_completion(found.overrides)
    else:
        check_overrides(found.overrides)
    return [*(word for word in given if word not in found.overrides), *found.overrides]


def _check_completion(words: Sequence[str]) -> None:
    for word in words:
        what, _, shell = word.partition("=")
        if what in ("install", "uninstall", "query") and shell in _SHELLS:
            return
    raise ConfigError(f"-sc needs a shell: use for example -sc install=bash (or one of {', '.join(_SHELLS)})")


def check_overrides(overrides: Sequence[str]) -> None:
    """Whether Hydra can read each override as the user meant it, and it holds nothing that must not be stored.

    Raises:
        ConfigError: of the first that is not so, with what to type instead.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for text in overrides:
        key, _, given = text.partition("=")
        check_free_of_credentials(key.lstrip("+~"), text)
        if message := new_name(key.lstrip("+~"), given):
            raise ConfigError(message)
        try:
            value = parser.parse_override(text).value()
        except HydraException as error:
            raise ConfigError(_hint(text)) from error
        if "." in key and not given.strip() and "=" in text:
            raise ConfigError(f"{key} is empty: give it a value, or leave it out")
        if key.lstrip("+") in _TEXTS and _is_changed(value, given.strip()):
            raise ConfigError(f"{text} is no text for Hydra: give {shell_override(key, given)}")
        if key.lstrip("+") in _LISTS and isinstance(value, str) and not value.startswith("${"):
            raise ConfigError(f"{text} is not a list: give {shlex.quote(f'{key}=[{given}]')}")


def new_name(key: str, value: str = "") -> str | None:
    """Return a message with the new key, or option, for one of an earlier version; None for any other."""
    for before, now in RENAMED.items():
        if f"{key}={value}" == before or f"{key}.".startswith(f"{before}."):
            return f"{before} has another name now: use {now}"
    return None


def check_free_of_credentials(key: str, text: str) -> None:
    """Whether a value may be stored and shown: configurations are, in files, in MLflow and in what launchers pickle.

    Raises:
        ConfigError: it has an address with a user or a query, or sets a secret; the message does not repeat it.
    """
    if _SECRET.search(key):
        raise ConfigError(f"{key} would be stored with the run: export it in the shell before the command")
    if key.startswith("engine.runtime_env") and _SECRET_OF_ACTORS.search(text):
        raise ConfigError(f"{key} has a secret, which would be stored with the run: give it to the machines themselves")
    if without_credentials(text) != text:
        where = _INSTEAD.get(key, "credentials come from the driver's usual environment, as AWS_PROFILE")
        raise ConfigError(f"{key} has a user, a query or a fragment in its URL: leave it out ({where})")


def several_values(text: str) -> str:
    """What to type instead of an override with commas, outside a sweep."""
    key, _, given = text.partition("=")
    else_give = ""
    if key.lstrip("+") in _TEXTS:
        else_give = f"; for one value with a comma, give {shell_override(key, given)}"
    elif key.lstrip("+") in _LISTS:
        else_give = f"; for a list, give {shlex.quote(f'{key}=[{given}]')}"
    return f"{text} has several values: for a sweep over them, add -m{else_give}"


def _is_changed(value: object, given: str) -> bool:
    """Whether a text would be taken for something else: a list, or a number that is written in another way."""
    return isinstance(value, list | dict) or (isinstance(value, int | float) and str(value) != given)


def _hint(text: str) -> str:
    """What to type instead of what Hydra's grammar can't read."""
    key, equals, given = text.partition("=")
    if not equals:
        if os.path.exists(os.path.expanduser(text)):
            return f"{text} is not of the form key=value: to embed it, give {shell_override('dataset.root', text)}"
        return f"{text} is not of the form key=value: use GROUP=OPTION or key=value (see --help)"
    if not _KEY.fullmatch(key):
        return f"{text} does not begin with a key: use GROUP=OPTION or key=value (see --help)"
    return f"{text} can't be read, as some of its characters mean something to Hydra: give {shell_override(key, given)}"

"""Checks of a command line before Hydra parses it; each problem becomes one sentence with the text to type instead."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn

from runner.config.credentials import check_free_of_credentials
from runner.config.quoting import shell_override
from runner.config.renamed import renamed_key
from runner.config.schema import schemas
from runner.core.errors import ConfigError

_TYPES = {
    f"{name.partition('_')[0]}.{field.name}": str(field.type)
    for name, schema in schemas().items()
    for field in fields(schema)
}
"""The type of each key of the configuration, as its dataclass annotates it."""

_TEXTS = {key for key, annotation in _TYPES.items() if annotation in ("str", "str | None")}

_LISTS = {key for key, annotation in _TYPES.items() if annotation.startswith("list[")}

_KEY = re.compile(r"(\+{0,2}|~)[\w$./@:\-]+", re.ASCII)

_SHELLS = ("bash", "zsh", "fish")


def check_arguments(argv: Sequence[str]) -> list[str]:
    """Check a command line, and return it in the order that Hydra needs, options first.

    Raises:
        ConfigError: an unknown option, options that exclude one another, or as ``check_overrides`` does.
    """
    from hydra._internal.utils import get_args_parser

    def fail(message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help and --hydra-help)")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(list(argv))
    modes = {"--cfg": options.cfg, "--info": options.info, "-sc": options.shell_completion}
    modes |= {"--multirun": options.multirun, "--run": options.run}
    chosen = [name for name, value in modes.items() if value]
    if len(chosen) > 1:
        fail(f"{' and '.join(chosen)} exclude one another: leave one of them out")
    for name in ("resolve", "package"):
        if getattr(options, name) and not options.cfg:
            fail(f"--{name} is for showing the configuration: add --cfg job")
    if options.experimental_rerun is not None:
        fail("--experimental-rerun needs a pickled configuration, which runs don't write: repeat the command instead")
    if options.shell_completion:
        _check_completion(options.overrides)
    else:
        check_overrides(options.overrides)
    return [*(word for word in argv if word not in options.overrides), *options.overrides]


def _check_completion(overrides: Sequence[str]) -> None:
    for override in overrides:
        action, _, shell = override.partition("=")
        if action in ("install", "uninstall", "query") and shell in _SHELLS:
            return
    raise ConfigError(f"-sc needs a shell: use for example -sc install=bash (or one of {', '.join(_SHELLS)})")


def check_overrides(overrides: Sequence[str]) -> None:
    """Check that Hydra reads each override as the user meant it, and that none has a value that must not be stored.

    Raises:
        ConfigError: of the first that fails, with the text to type instead.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for override in overrides:
        key, _, text = override.partition("=")
        check_free_of_credentials(key.lstrip("+~"), override)
        if message := renamed_key(key.lstrip("+~"), text):
            raise ConfigError(message)
        try:
            value = parser.parse_override(override).value()
        except HydraException as error:
            raise ConfigError(_hint(override)) from error
        if "." in key and not text.strip() and "=" in override:
            raise ConfigError(f"{key} is empty: give it a value, or leave it out")
        if key.lstrip("+") in _TEXTS and _is_changed(value, text.strip()):
            raise ConfigError(f"{override} is not text to Hydra: give {shell_override(key, text)}")
        if key.lstrip("+") in _LISTS and isinstance(value, str) and not value.startswith("${"):
            raise ConfigError(f"{override} is not a list: give {shlex.quote(f'{key}=[{text}]')}")


def several_values(override: str) -> str:
    """Return the message for an override with commas outside a sweep."""
    key, _, text = override.partition("=")
    alternative = ""
    if key.lstrip("+") in _TEXTS:
        alternative = f"; for one value with a comma, give {shell_override(key, text)}"
    elif key.lstrip("+") in _LISTS:
        alternative = f"; for a list, give {shlex.quote(f'{key}=[{text}]')}"
    return f"{override} has several values: for a sweep over them, add -m{alternative}"


def _is_changed(value: object, text: str) -> bool:
    """Whether Hydra reads a text as something else: a list, or a number with another spelling."""
    return isinstance(value, list | dict) or (isinstance(value, int | float) and str(value) != text)


def _hint(override: str) -> str:
    """Return the message for an override that Hydra's grammar can't read."""
    key, equals, text = override.partition("=")
    if not equals:
        if os.path.exists(os.path.expanduser(override)):
            return (
                f"{override} is not of the form key=value: to embed it, give {shell_override('dataset.root', override)}"
            )
        return f"{override} is not of the form key=value: use GROUP=OPTION or key=value (see --help)"
    if not _KEY.fullmatch(key):
        return f"{override} does not begin with a key: use GROUP=OPTION or key=value (see --help)"
    return f"{override} can't be read, as some of its characters are Hydra's syntax: give {shell_override(key, text)}"

"""The words of a command line before Hydra has them: what it can't read, or would store, is refused in one sentence."""

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
    f"{name.partition('_')[0]}.{key.name}": str(key.type)
    for name, schema in schemas().items()
    for key in fields(schema)
}
"""The type of each key of the configuration, as its dataclass has it."""

_TEXTS = {key for key, kind in _TYPES.items() if kind in ("str", "str | None")}

_LISTS = {key for key, kind in _TYPES.items() if kind.startswith("list[")}

_KEY = re.compile(r"(\+{0,2}|~)[\w$./@:\-]+", re.ASCII)

_SHELLS = ("bash", "zsh", "fish")


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
        if message := renamed_key(key.lstrip("+~"), given):
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

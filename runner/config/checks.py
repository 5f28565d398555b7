"""Checks of single values, and the mark of those that a resumed run may change.

Each check raises a ``ConfigError`` that names the key, its value and the remedy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from runner.config.credentials import check_free_of_credentials
from runner.core.errors import ConfigError

FREE = {"free": True}
"""Metadata of a field of model, dataset, weights, frontend or output that may differ when a run is resumed."""

_LARGEST = 2**32
"""Of any number; waiting for twice as many seconds overflows the system's clocks."""

_PATHS = (
    "dataset.root",
    "dataset.path",
    "weights.path",
    "weights.pca_path",
    "model.path",
    "model.classes",
    "output.dir",
    "paths.models",
    "paths.outputs",
)


def one_of(key: str, value: str, options: tuple[str, ...]) -> str:
    """Return the value if it is one of the options."""
    if value not in options:
        raise ConfigError(f"{key}={value} is not an option: use one of {', '.join(options)}")
    return value


def whole_number(key: str, value: object, minimum: int, alternative: str) -> None:
    """Check for an integer from a minimum; ``alternative`` completes the message with the key's other values."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{key}={value} is not an option: use a whole number from {minimum}, {alternative}")


def at_least(key: str, value: float, minimum: float) -> None:
    """Check for a number from a minimum."""
    if value < minimum:
        raise ConfigError(f"{key}={value} is too small: use {minimum} or more")


def positive_seconds(key: str, value: float, example: int) -> None:
    """Check for a duration above zero."""
    if not value > 0:
        raise ConfigError(f"{key}={value} is not above 0 seconds: use for example {example}")


def names_of(key: str, table: object, names: tuple[str, ...]) -> None:
    """Check for a table whose names are among those given."""
    if not isinstance(table, dict):
        raise ConfigError(f"{key}={table} is not a table: give it as '{key}={{{names[0]}:VALUE}}'")
    for name in table:
        one_of(key, name, names)


def check_values(values: object, key: str = "") -> None:
    """Check every value of nested ones for what none may be: NaN, infinite, an empty text, an address with credentials.

    An empty text is typically an unset variable of a script.

    Args:
        values: a configuration as nested dictionaries and lists.
        key: dotted key of ``values``.
    """
    for leaf, value in _leaves(key, values):
        if isinstance(value, int | float) and not abs(value) <= _LARGEST:
            raise ConfigError(f"{leaf}={value} is not a finite number that can be used: give one below {_LARGEST:,}")
        if isinstance(value, str):
            if not value.strip():
                raise ConfigError(f"{leaf} is empty: give it a value, or leave it out")
            check_free_of_credentials(leaf, value)
            if leaf in _PATHS and value.startswith("~") and os.path.expanduser(value) == value:
                raise ConfigError(f"{leaf}={value} names the home folder of an unknown user: give the whole path")


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield each plain value with its dotted key; those of a list under the key of the list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(key, inner)
    else:
        yield key, value

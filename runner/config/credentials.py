"""Configurations are stored in files, in MLflow and in launchers' pickles: credentials in them are refused."""

from __future__ import annotations

import re

from runner.core.errors import ConfigError
from runner.core.redact import without_credentials

_SECRET_NAME = r"\w*(SECRET|PASSWORD|TOKEN|KEY|CREDENTIAL)\w*"

_SECRET_VARIABLE = re.compile(rf"env_set\.{_SECRET_NAME}$", re.IGNORECASE)

_SECRET_OF_ACTORS = re.compile(rf"{_SECRET_NAME}['\"]?\s*[:=]", re.IGNORECASE)

_ALTERNATIVES = {
    "tracking.uri": "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole address as "
    "MLFLOW_TRACKING_URI, in the environment",
    "weights.base_url": "downloads take them from ~/.netrc",
}
"""Where credentials belong, by the key whose address must not have them."""


def check_free_of_credentials(key: str, text: str) -> None:
    """Check that a value may be stored and shown.

    Raises:
        ConfigError: it has an address with a user or a query, or sets a secret; the message does not repeat it.
    """
    if _SECRET_VARIABLE.search(key):
        raise ConfigError(f"{key} would be stored with the run: export it in the shell before the command")
    if key.startswith("engine.runtime_env") and _SECRET_OF_ACTORS.search(text):
        raise ConfigError(f"{key} has a secret, which would be stored with the run: give it to the machines themselves")
    if without_credentials(text) != text:
        alternative = _ALTERNATIVES.get(key, "credentials come from the driver's usual environment, as AWS_PROFILE")
        raise ConfigError(f"{key} has a user, a query or a fragment in its URL: leave it out ({alternative})")

"""The fingerprint of a configuration: the settings that decide a run's numbers and files.

A run is resumed only with the same fingerprint.  A field with the metadata ``FREE`` is no part of it.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.paths import is_url
from runner.core.readable import Json, json_object

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

_PATHS = ("dataset.root", "dataset.path", "model.path", "weights.path", "weights.pca_path")


def fingerprint(config: RunConfig) -> dict[str, Json]:
    """Return the settings that decide which numbers and files a run has, by dotted key, as JSON has them."""
    values: dict[str, object] = {"precision.name": config.precision.name}
    for group in ("model", "dataset", "weights", "frontend", "output"):
        section = getattr(config, group)
        for field in fields(section):
            if field.metadata.get("free"):
                continue
            key, value = f"{group}.{field.name}", getattr(section, field.name)
            if key in _PATHS and value is not None and not is_url(value):
                value = str(Path(value).expanduser().resolve())
            values[key] = value
    return json_object(json.dumps(values))

"""What of a configuration decides a run's numbers and files: a run is resumed only with the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.paths import is_url

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

_FREE = {
    "dataset": ("on_error", "max_skipped", "decode_timeout_s", "prefetch", "download_timeout_s", "listing"),
    "weights": ("base_url", "timeout_s"),
    "output": ("dir", "upload_timeout_s"),
}
"""Keys of the groups below that change no number, and so may differ."""

_PATHS = {("dataset", "root"), ("dataset", "path"), ("weights", "path"), ("weights", "pca_path")}


def deciding(config: RunConfig) -> dict[str, Any]:
    """All settings, by dotted key, that decide which numbers and files a run gives."""
    values = config.to_dict()
    found: dict[str, Any] = {"precision.name": values["precision"]["name"]}
    for group in ("dataset", "weights", "frontend", "output"):
        for key, value in values[group].items():
            if key in _FREE.get(group, ()):
                continue
            if (group, key) in _PATHS and value is not None and not is_url(value):
                value = str(Path(value).expanduser().resolve())
            found[f"{group}.{key}"] = value
    return dict(json.loads(json.dumps(found)))

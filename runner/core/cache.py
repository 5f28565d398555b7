"""Caches of measurements: small JSON files below ``paths.models``/.cache, for one machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.core.files import write_shared
from runner.core.readable import Json, json_object

log = logging.getLogger(__name__)


def remembered(
    path: Path,
    key: str,
    measure: Callable[[], Any],
    accept: Callable[[Any], bool],
    keep: Callable[[Any], bool] = lambda value: True,
) -> Any:
    """Return the cached value of ``key``, or measure and cache it.

    Args:
        path: the JSON file; if it can't be read or written, the value is measured each time.
        key: everything that the value depends on: machine, device, versions, settings.
        measure: returns a value that JSON can hold.
        accept: whether a cached value has the right form, and is not too old.
        keep: whether a new value should be cached.
    """
    cached: dict[str, Json] = {}
    try:
        cached = json_object(path.read_text(encoding="utf-8"))
        if accept(cached[key]):
            return cached[key]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    cached[key] = measure()
    if not keep(cached[key]):
        return cached[key]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shared(path, json.dumps(cached, indent=2))
    except OSError as error:
        log.info("could not cache %s (%s): each run measures it again", path.name, error)
    return cached[key]

"""What was measured once on a machine and is remembered: small JSON files below ``paths.models``/.cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.core.files import write_atomic

log = logging.getLogger(__name__)


def remembered(
    path: Path,
    key: str,
    measure: Callable[[], Any],
    accept: Callable[[Any], bool],
    keep: Callable[[Any], bool] = lambda value: True,
) -> Any:
    """What was measured under ``key``, from ``path`` if it is there and acceptable, else measured now and kept.

    Args:
        path: a JSON file; one that can't be read is measured anew, one that can't be written costs that each time.
        key: all that the measurement depends on: machine, device, versions, settings.
        measure: gives a value that JSON can hold.
        accept: whether a value found there is of the right form, and not too old.
        keep: whether a value that was measured now is worth keeping.
    """
    known: dict[str, Any] = {}
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
        if accept(known[key]):
            return known[key]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    known[key] = measure()
    if not keep(known[key]):
        return known[key]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(known, indent=2))
    except OSError as error:
        log.info("%s is not kept (%s): it is measured at each run", path.name, error)
    return known[key]

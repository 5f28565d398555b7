"""Programs that XLA compiled for the GPUs of this machine, cached below ``paths.models``/.cache.

TensorFlow keeps an entry for each program and input shape, and uses one only for an equal program, so that precision,
batch size and code need no keys here.  An entry that is damaged makes it fail, or run what the file happens to hold:
therefore a list of digests is kept, and entries that differ from it are deleted before TensorFlow sees them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.files import digest_file, write_shared
from runner.devices.host import versions

if TYPE_CHECKING:
    from runner.devices.nvml import NvidiaGpu

log = logging.getLogger(__name__)

_FLAGS = "TF_XLA_FLAGS"

_DIRECTORY_FLAG = "--tf_xla_persistent_cache_directory"


class CompileCache:
    """The cached programs of one TensorFlow on GPUs of one kind; a folder that can't be used is no error.

    Args:
        cache: ``paths.models``/.cache.
        gpus: all GPUs, with their driver, of ``nvml.describe_gpus``.
    """

    def __init__(self, cache: Path, gpus: Sequence[NvidiaGpu]) -> None:
        key = json.dumps([versions()["tensorflow"], *map(asdict, gpus)], sort_keys=True)
        self.folder = cache.absolute() / "xla" / hashlib.sha256(key.encode()).hexdigest()[:16]
        self._digests = self.folder.with_suffix(".json")
        self._is_used = bool(gpus) and len(str(self.folder).split()) == 1  # TensorFlow's flags know no quotes

    def use(self) -> None:
        """Delete damaged entries, and have TensorFlow use the others.

        To be called before TensorFlow is asked for devices, at which it reads its flags.
        """
        flags = os.environ.get(_FLAGS, "")
        self._is_used = self._is_used and _DIRECTORY_FLAG not in flags  # the user's own cache has precedence
        if not self._is_used:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._delete_damaged()
        except OSError as error:
            log.info("could not use the cache of compiled programs (%s): each run compiles them", error)
            self._is_used = False
            return
        own = f"{_DIRECTORY_FLAG}={self.folder} --tf_xla_persistent_cache_read_only=false"
        os.environ[_FLAGS] = f"{flags} {own}".strip()

    def commit(self) -> None:
        """Record the digests of the entries, whose programs have passed the parity gate."""
        if not self._is_used:
            return
        try:
            write_shared(self._digests, json.dumps({entry.name: digest_file(entry) for entry in self._entries()}))
        except OSError as error:
            log.info("could not keep the cache of compiled programs (%s): the next run compiles them", error)

    def clear(self) -> None:
        """Delete all entries: the next run compiles."""
        if self._is_used:
            with contextlib.suppress(OSError):
                for path in (self._digests, *self._entries()):
                    path.unlink(missing_ok=True)

    def _entries(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_file()]

    def _delete_damaged(self) -> None:
        try:
            digests = dict(json.loads(self._digests.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            digests = {}
        for entry in self._entries():
            if digests.get(entry.name) != list(digest_file(entry)):
                entry.unlink(missing_ok=True)

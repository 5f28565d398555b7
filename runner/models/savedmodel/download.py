"""Downloads a model from an object store, once."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

from runner.core.errors import WeightsError
from runner.core.files import commit_folder
from runner.storage.object_store import ObjectStore

log = logging.getLogger(__name__)

_TIMEOUT_S = 60.0


def fetch_model(url: str, folder: Path) -> Path:
    """Return the local copy of a model at a URL: a SavedModel's folder, or a Keras file; download it if it is missing.

    A copy is kept under the digest of the URL: delete it to have the model downloaded again.

    Args:
        url: as s3://bucket/models/perch, or …/model.keras.
        folder: of downloaded models.

    Raises:
        ConfigError: the URL can't be opened.
        StoreError: the store does not give it.
        WeightsError: nothing is there.
    """
    from filelock import FileLock

    parent, _, name = url.rstrip("/").rpartition("/")
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{target.name}.lock"):
        if not target.exists():
            temporary = folder / f".{target.name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            log.info("downloading %s", url)
            store = ObjectStore(parent, _TIMEOUT_S, "model.path")
            if Path(name).suffix:
                if store.size(name) is not None:
                    store.get(name, temporary / name)
            else:
                store.get_below(name, temporary)
            if not (temporary / name).exists():
                raise WeightsError(f"model.path={url} does not exist: give a SavedModel's folder, or a .keras file")
            commit_folder(temporary, target)
    return target / name

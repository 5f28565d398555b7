"""State shared with a run's actors without shared storage.

Spec and weights come through Ray.  With an output in an object store an actor works in a temporary folder of its own
machine.
"""

from __future__ import annotations

import atexit
import glob
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.core.layout import RunLayout
from runner.core.paths import default_models
from runner.core.scratch import HeldFolder

if TYPE_CHECKING:
    from runner.contract.spec import RunSpec
    from runner.engines.ray.messages import ActorInit
    from runner.output.remote.committer import RemoteCommitter
    from runner.weights.selection import WeightsChoice

log = logging.getLogger(__name__)

_FOLDER = "vggish-actor-"


@dataclass(frozen=True)
class LocalRun:
    """A run on an actor's machine: its spec with paths of this machine, and its way into the object store.

    ``remote`` is None where files go to a folder that all machines see; ``folder`` is the actor's own, if it needs one.
    """

    spec: RunSpec
    remote: RemoteCommitter | None
    folder: HeldFolder | None


def upload_weights(ray: Any, spec: RunSpec) -> dict[str, Any]:
    """Put the weights' files into Ray's object store; return its references by name."""
    return {name: ray.put(np.fromfile(part, np.uint8)) for path in _paths(spec) for name, part in _files_of(path)}


def localize(init: ActorInit) -> LocalRun:
    """Bring to this machine what a run needs.

    Raises:
        ConfigError: the object store can't be opened here, as its driver is not installed.
        StoreError: it does not give the manifest.
    """
    spec = init.spec
    missing = not all(_files_of(path) for path in _paths(spec))
    folder = HeldFolder(_FOLDER) if missing or spec.remote else None
    if folder:
        atexit.register(folder.remove)
        if missing:
            spec = replace(spec, weights=_download_weights(init, folder.path))
    if not spec.config.paths.models_folder.is_dir():
        paths = replace(spec.config.paths, models=str(default_models()))
        spec = replace(spec, config=replace(spec.config, paths=paths))
    if spec.remote is None:
        return LocalRun(spec, None, folder)
    from runner.output.remote.committer import RemoteCommitter

    assert folder is not None
    run_dir = folder.path / "run"
    spec = replace(spec, run_dir=run_dir, manifest=RunLayout(run_dir).manifest)
    remote = RemoteCommitter(spec, keep_local=False)
    remote.download_manifest()
    return LocalRun(spec, remote, folder)


def _download_weights(init: ActorInit, folder: Path) -> WeightsChoice:
    for name, data in init.weights.items():
        log.info("downloading %s from the driver", name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data.future().result().tofile(folder / name)
    chosen = init.spec.weights
    local = [original and str(folder / Path(original).name) for original in _originals(chosen)]
    return replace(chosen, path=local[0], pca_path=local[1], classes_path=local[2])


def _paths(spec: RunSpec) -> list[str]:
    return [path for path in _originals(spec.weights) if path is not None]


def _originals(chosen: WeightsChoice) -> tuple[str | None, ...]:
    return chosen.path, chosen.pca_path, chosen.classes_path


def _files_of(path: str) -> list[tuple[str, Path]]:
    """List the files of weights on this machine, by name: one file, or those of a folder or of a V2 checkpoint."""
    prefix = Path(path)
    if prefix.is_file():
        return [(prefix.name, prefix)]
    if prefix.is_dir():
        below = (file for file in prefix.rglob("*") if file.is_file())
        return sorted((file.relative_to(prefix.parent).as_posix(), file) for file in below)
    files = prefix.parent.glob(f"{glob.escape(prefix.name)}.*")
    return sorted((file.name, file) for file in files if file.suffix == ".index" or file.suffix.startswith(".data-"))

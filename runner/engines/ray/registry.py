"""What a run's actors get of it, without any storage that all machines see.

Spec and weights come through Ray.  With an output in an object store an actor works in a temporary folder of its own
machine.
"""

from __future__ import annotations

import atexit
import glob
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.config.schema import from_dict
from runner.core.layout import MANIFEST, STATE
from runner.core.paths import default_models
from runner.core.scratch import HeldFolder

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.output.remote.committer import RemoteCommitter

log = logging.getLogger("runner.engines.worker")

_FOLDER = "vggish-actor-"

_WEIGHTS = ("path", "pca_path")


@dataclass(frozen=True)
class ActorInit:
    """What an actor is made from.

    ``weights`` are Ray's references to the weights' files by name, for machines that lack them; ``clips`` is about how
    many clips an actor gets.
    """

    spec: dict[str, Any]
    weights: Mapping[str, Any]
    clips: int


@dataclass(frozen=True)
class LocalRun:
    """A run as an actor has it: spec and configuration with paths of this machine, and its way into the store.

    ``mirror`` is None where files go to a folder that all machines see; ``folder`` is the actor's own, if it needs one.
    """

    spec: dict[str, Any]
    config: RunConfig
    mirror: RemoteCommitter | None
    folder: HeldFolder | None


def weights_in(ray: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Have the weights' files in Ray's object store."""
    paths = [path for key in _WEIGHTS if (path := spec["weights"][key]) is not None]
    return {name: ray.put(np.fromfile(part, np.uint8)) for path in paths for name, part in _parts(path)}


def settle(brief: ActorInit) -> LocalRun:
    """Have on this machine what a run needs.

    Raises:
        ConfigError: the store can't be opened here, as its driver is not installed.
        StoreError: it does not give the manifest.
    """
    spec, config = dict(brief.spec), from_dict(brief.spec["config"])
    given = {key: path for key in _WEIGHTS if (path := spec["weights"][key]) is not None}
    missing = not all(_parts(path) for path in given.values())
    folder = HeldFolder(_FOLDER) if missing or "store" in spec else None
    if folder:
        atexit.register(folder.remove)
        if missing:
            for name, data in brief.weights.items():
                log.info("downloading %s from the driver", name)
                data.future().result().tofile(folder.path / name)
            spec["weights"] = spec["weights"] | {key: str(folder.path / Path(path).name) for key, path in given.items()}
    if not Path(config.paths.models).expanduser().is_dir():
        config = replace(config, paths=replace(config.paths, models=str(default_models())))
    if "store" not in spec:
        return LocalRun(spec, config, None, folder)
    from runner.output.remote.committer import RemoteCommitter

    assert folder is not None
    run_dir = folder.path / "run"
    spec |= {"run_dir": str(run_dir), "manifest": str(run_dir / STATE / MANIFEST)}
    mirror = RemoteCommitter(spec, config, keeps=False)
    mirror.get_manifest()
    return LocalRun(spec, config, mirror, folder)


def _parts(path: str) -> list[tuple[str, Path]]:
    """The files of weights on this machine, by name: one file, or those of a V2 checkpoint's prefix."""
    whole = Path(path)
    if whole.is_file():
        return [(whole.name, whole)]
    found = whole.parent.glob(f"{glob.escape(whole.name)}.*")
    return sorted((each.name, each) for each in found if each.suffix == ".index" or each.suffix.startswith(".data-"))

"""What the actors of a run have in common, without any storage that all machines see.

A small actor on the driver's machine keeps what the run was begun with, and gives the weights' files to machines that
lack them.  With an output in an object store an actor works in a temporary folder of its own machine.
"""

from __future__ import annotations

import asyncio
import atexit
import glob
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.config import RunConfig, from_dict
from runner.held_folder import HeldFolder
from runner.journal import STATE
from runner.paths import default_models
from runner.resume import MANIFEST
from runner.taking_up import identity_begun_with

if TYPE_CHECKING:
    from runner.store_writer import StoreMirror

log = logging.getLogger("runner.worker")

_FOLDER = "vggish-actor-"
_PIECE = 16 << 20
"""Bytes of a file that are sent at once."""
_WEIGHTS = ("path", "pca_path")
_CALLS = 1000
"""Calls that the registry takes at a time: many actors may ask for the weights at once."""


class Brief(NamedTuple):
    """What an actor is made from: the run's spec, and a handle of the run's ``Registry``."""

    spec: dict[str, Any]
    registry: Any


class Registry:
    """The actor that serves the others.

    Args:
        files: by the names under which they may be read.
        identity: the weights and precision that the run was begun with; None for a new one.
    """

    def __init__(self, files: Mapping[str, str], identity: Mapping[str, str] | None = None) -> None:
        self._files = files
        self._identity = identity

    async def agree(self, identity: Mapping[str, str]) -> Mapping[str, str]:
        """What the run embeds with: what it was begun with, or else what the first actor asks with."""
        self._identity = self._identity or identity
        return self._identity

    async def names(self) -> list[str]:
        """The files that may be read."""
        return list(self._files)

    async def read(self, name: str, offset: int) -> bytes:
        """A piece of a file from ``offset`` on; nothing at its end."""
        return await asyncio.to_thread(_piece, Path(self._files[name]), offset)


def _piece(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(_PIECE)


def brief_for(ray: Any, spec: dict[str, Any]) -> Brief:
    """Start the registry of a run on this machine; what its actors are made from."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    files = {name: str(path) for key in _WEIGHTS if spec["weights"][key] for name, path in _parts(spec["weights"][key])}
    kind = ray.remote(Registry).options(num_cpus=0, scheduling_strategy=here, max_concurrency=_CALLS)
    return Brief(spec, kind.remote(files, identity_begun_with(Path(spec["run_dir"]))))


def agreed_identity(registry: Any, identity: dict[str, str]) -> Mapping[str, str]:
    """See ``Registry.agree``."""
    import ray

    found: Mapping[str, str] = ray.get(registry.agree.remote(identity))
    return found


@dataclass(frozen=True)
class Settled:
    """A run as an actor has it: spec and configuration with paths of this machine, and its way into the store.

    ``mirror`` is None where files go to a folder that all machines see.
    """

    spec: dict[str, Any]
    config: RunConfig
    mirror: StoreMirror | None


def settle(brief: Brief) -> Settled:
    """Have on this machine what a run needs.

    Raises:
        ConfigError: the store can't be opened here, as its driver is not installed.
        StoreError: it does not give the manifest.
    """
    spec, config = dict(brief.spec), from_dict(brief.spec["config"])
    given = {key: path for key in _WEIGHTS if (path := spec["weights"][key]) is not None}
    missing = not all(_parts(path) for path in given.values())
    if missing or "store" in spec:
        folder = HeldFolder(_FOLDER)
        atexit.register(folder.remove)
        if missing:
            _get_files(brief.registry, folder.path)
            spec["weights"] = spec["weights"] | {key: str(folder.path / Path(path).name) for key, path in given.items()}
    if not Path(config.paths.models).expanduser().is_dir():
        config = replace(config, paths=replace(config.paths, models=str(default_models())))
    if "store" not in spec:
        return Settled(spec, config, None)
    from runner.store_writer import StoreMirror

    run_dir = folder.path / "run"
    spec |= {"run_dir": str(run_dir), "manifest": str(run_dir / STATE / MANIFEST)}
    mirror = StoreMirror(spec, config, keeps=False)
    mirror.get_manifest()
    return Settled(spec, config, mirror)


def _parts(path: str) -> list[tuple[str, Path]]:
    """The files of weights on this machine, by name: one file, or those of a V2 checkpoint's prefix."""
    whole = Path(path)
    if whole.is_file():
        return [(whole.name, whole)]
    found = whole.parent.glob(f"{glob.escape(whole.name)}.*")
    return sorted((each.name, each) for each in found if each.suffix == ".index" or each.suffix.startswith(".data-"))


def _get_files(registry: Any, folder: Path) -> None:
    import ray

    for name in ray.get(registry.names.remote()):
        log.info("%s is not on this machine: it is got from the driver's", name)
        with (folder / name).open("wb") as file:
            while piece := ray.get(registry.read.remote(name, file.tell())):
                file.write(piece)

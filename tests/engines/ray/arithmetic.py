"""Drivers and actors whose sessions are plain arithmetic; an actor imports no test, and neither pytest nor Hydra.

``python -m tests.engines.ray.arithmetic DATA FOLDER [argument ...]`` is a driver.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from runner.engines.ray import actor
from runner.engines.ray.actor import EmbedShards
from runner.engines.ray.messages import ShardReport
from tests.arithmetic import ArithmeticStartup, no_canary


class ArithmeticActor(EmbedShards):
    """Waits with every shard while there is ``hold`` beside the run's folder, and dies of the one that POISON names."""

    def _make(self) -> None:
        actor.SessionStartup = ArithmeticStartup
        actor.Canary = no_canary
        super()._make()

    async def embed(self, shard: int) -> ShardReport:
        folder = self.spec.run_dir
        (folder.parent / f"actor-{os.getpid()}-of-{self._report.node}").touch()
        while (folder.parent / "hold").exists():
            await asyncio.sleep(0.05)
        if os.environ.get("POISON") == str(shard):
            os._exit(1)
        return await super().embed(shard)


def run(data: Path, folder: Path, *more: str) -> Any:
    """The result of a run, as `whole_run.session` gives it."""
    from tests import whole_run  # which an actor does without

    run = folder / "run"
    return whole_run.session(whole_run.make_config(data, run, "output.clips_per_shard=1", *more, folder=folder), run)


def drive(data: str, folder: str, *more: str) -> None:
    """Do a driver's work, in a process of its own."""
    actor.EmbedShards = ArithmeticActor
    print(run(Path(data), Path(folder), *more))


if __name__ == "__main__":
    from tests.engines.ray import arithmetic  # under the name by which actors import it: the main module is pickled

    arithmetic.drive(*sys.argv[1:])

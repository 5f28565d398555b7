"""``engine=ray``: the run's shards under Ray Data, by actors that each embed as the local engine does.

The driver (the run's worker process, without TensorFlow) keeps the journal: a shard is done once its line is there, so
a run that was begun by one engine is finished by any other.  Ray Data was chosen over plain actors because it brings
what would else be home-made: an actor pool, its restarts after a death, and the hand-out of work.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.cold_start import Events, warn
from runner.config import RayEngineConfig, from_dict
from runner.errors import EngineError
from runner.files import write_atomic
from runner.hardware import usable_cores
from runner.journal import STATE, ShardEntry
from runner.limits import check_skipped
from runner.output import RunWriter, totals
from runner.taking_up import agree, shards_done, sole_worker

log = logging.getLogger("runner.worker")

_OBJECT_STORE_BYTES = 128 << 20
"""Nothing but lists of shards and reports goes through Ray's object store."""
SPEC = "ray-spec.json"
"""What actors read of the run, in its folder's state."""
_GROUPS_AHEAD = 2
_LAST_SHARE = 50
"""The last groups of shards are so small a share of an actor's part of the run: no actor works alone for longer."""
_folders: list[str] = []
"""Of the Ray that was started here."""
_SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}


def carry_out(spec: dict[str, Any], run_dir: Path, events: Events, result: dict[str, Any], stop: Any) -> None:
    """Embed what is left of a run on a cluster; what it came to goes into ``result``.

    Args:
        spec: the run's.
        run_dir: its folder, on storage that all machines see.
        events: told of progress.
        result: filled.
        stop: has ``is_set()``: whether to end early.

    Raises:
        EngineError: Ray is not installed, can't be reached, or has nothing to run on.
        RunnerError: what an actor failed with.
    """
    config = from_dict(spec["config"])
    result["warnings"] = []
    with contextlib.ExitStack() as stack:
        events.send("phase", name="lock")
        stack.enter_context(sole_worker(run_dir, config.engine.stop_grace_s))
        done = shards_done(run_dir, config)
        events.send("phase", name="cluster")
        assert isinstance(config.engine, RayEngineConfig)
        ray = connect(config.engine)
        actors, resources = actors_for(config.engine, config.device.name, ray.nodes())
        left = [number for number in range(len(spec["shards"])) if number not in done]
        events.send("phase", name="embed", seconds={})
        collected = _Collected(spec, run_dir, events, result, done)
        if left:
            own_spec = run_dir / STATE / SPEC
            write_atomic(own_spec, json.dumps(spec))
            _embed(ray, own_spec, groups(left, actors), actors, resources, collected, stop)
        collected.finish(stop.is_set() and len(collected.writer.done) < len(spec["shards"]), actors)


def _embed(
    ray: Any,
    spec_path: Path,
    work: Sequence[Sequence[int]],
    actors: int,
    resources: dict[str, float],
    collected: _Collected,
    stop: Any,
) -> None:
    from runner.ray_actor import EmbedShards

    rows = [{"shards": json.dumps(list(group))} for group in work]
    reports = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        EmbedShards,
        fn_constructor_args=(str(spec_path),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
        **resources,
    )
    for batch in reports.iter_batches(batch_size=1, prefetch_batches=0):
        for report in batch["report"]:
            collected.take(json.loads(report))
        if stop.is_set():
            return


def connect(engine: RayEngineConfig) -> Any:
    """Ray, connected to the address given, or started here; ``disconnect`` ends both.

    Raises:
        EngineError: it is not installed, or can't be reached or started.
    """
    os.environ.update(_SETTINGS)
    folder = None if engine.address else tempfile.mkdtemp(prefix="vggish-ray-")
    if folder:
        _folders.append(folder)
    try:
        import ray
        import ray.data

        own = {
            "num_cpus": usable_cores(),
            "include_dashboard": engine.dashboard,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": folder,
        }
        ray.init(
            address=engine.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if engine.address else own),
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        return ray
    except ImportError as error:
        raise EngineError(f"engine=ray needs Ray ({error}): pip install 'vggish-runner[ray]'") from error
    except Exception as error:  # Ray has many, and its own are RuntimeErrors
        where = f"engine.address={engine.address} can't be reached" if engine.address else "Ray did not start"
        raise EngineError(f"{where} ({error}): see runner.log") from error


def disconnect() -> None:
    """Leave the cluster, and stop it if it was started here; the last thing a worker does.

    A driver that loses its cluster is ended by Ray on the spot, so all is on disk before.
    """
    with contextlib.suppress(Exception):
        import ray

        ray.shutdown()
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)


def actors_for(engine: RayEngineConfig, device: str, nodes: Sequence[dict[str, Any]]) -> tuple[int, dict[str, float]]:
    """How many actors the cluster holds, and what each of them takes.

    Args:
        engine: the configuration; what it leaves open is decided here.
        device: the device asked for.
        nodes: as ``ray.nodes()`` gives them.

    Raises:
        EngineError: no machine of the cluster has what an actor takes.
    """
    machines = [node["Resources"] for node in nodes if node.get("Alive")]
    on_gpus = device == "gpu" or (device == "auto" and any(each.get("GPU") for each in machines))
    gpus = engine.num_gpus_per_actor
    if gpus is None:
        gpus = 1.0 if on_gpus and any(each.get("GPU") for each in machines) else 0.0
    cpus = engine.num_cpus_per_actor
    if cpus is None:
        shares = [each.get("CPU", 0.0) / max(each.get("GPU", 0.0) / gpus, 1.0) if gpus else each.get("CPU", 0.0)
                  for each in machines if not gpus or each.get("GPU", 0.0) >= gpus]  # fmt: skip
        cpus = max(1.0, float(int(min(shares, default=1.0))))
    fits = sum(
        int(min(each.get("CPU", 0.0) // cpus, each.get("GPU", 0.0) // gpus if gpus else each.get("CPU", 0.0) // cpus))
        for each in machines
    )
    if fits < 1:
        raise EngineError(
            f"no machine of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for an actor: "
            "lower engine.num_cpus_per_actor or engine.num_gpus_per_actor"
        )
    wanted = fits if engine.concurrency == "auto" else int(engine.concurrency)
    return wanted, {"num_cpus": cpus, "num_gpus": gpus}


def groups(shards: Sequence[int], actors: int) -> list[list[int]]:
    """The shards in groups, the first ones large and the last ones small, so that no actor works long alone."""
    found = []
    at = 0
    least = -(-len(shards) // (_LAST_SHARE * actors))
    while at < len(shards):
        size = max(least, (len(shards) - at) // (_GROUPS_AHEAD * actors))
        found.append(list(shards[at : at + size]))
        at += size
    return found


class _Collected:
    """Takes the actors' reports: into the journal, the counts and the figures."""

    def __init__(
        self, spec: dict[str, Any], run_dir: Path, events: Events, result: dict[str, Any], done: dict[int, ShardEntry]
    ) -> None:
        self._spec, self._run_dir, self._events, self._result = spec, run_dir, events, result
        self._config = from_dict(spec["config"])
        self._before = sum(entry.clips for entry in done.values())
        self.writer = RunWriter(run_dir, {}, [], None, done)
        self._actors: dict[str, dict[str, Any]] = {}
        self._began = float("inf")
        self._ended = 0.0

    def take(self, report: dict[str, Any]) -> None:
        """Take a report; raise what the actor failed with."""
        actor = report["actor"]
        if "identity" in actor:
            agree(self._run_dir, actor["identity"])
            self.writer.describe(actor["file_metadata"])
        known = self._actors.setdefault(
            f"{actor['host']}:{actor['pid']}", {**actor, "clips": 0.0, "audio_s": 0.0, "busy_s": 0.0, "examples": 0.0}
        )
        for entry in report["entries"]:
            entry["files"] = {name: tuple(described) for name, described in entry["files"].items()}
            self.writer.record(ShardEntry(**entry))
        if "figures" in report:
            self._began, self._ended = min(self._began, report["began"]), max(self._ended, report["ended"])
            known["busy_s"] += report["ended"] - report["began"]
            for key, name in (("audio_s", "audio_s"), ("examples", "examples"), ("clips_embedded", "clips")):
                known[name] += report["figures"][key]
        self._progress()
        if report["error"]:
            raise _as_raised(report["error"])
        check_skipped(self._config.dataset, self._spec["dataset"], int(totals(self.writer.done)[0]["clips_skipped"]))

    def finish(self, killed: bool, actors: int) -> None:
        """Make clips.parquet, and fill the result."""
        self.writer.close()
        result = self._result
        result["status"] = "killed" if killed else "finished"
        overall, result["skipped"], result["noted"] = totals(self.writer.done)
        every = list(self._actors.values())
        result["metrics"] |= overall
        if every:
            self._fill(every, overall)
        result["metrics"]["actors"] = float(len(every))
        result["shards"] = len(self.writer.done)
        result.setdefault("resolved", {})["engine.concurrency"] = actors

    def _fill(self, every: list[dict[str, Any]], overall: dict[str, float]) -> None:
        result, first = self._result, every[0]
        for key in ("device", "precision", "weights", "model", "parity", "resolved"):
            if key in first:
                result[key] = first[key]
        slowest = max(every, key=lambda each: each["metrics"].get("cold_start_s", 0.0))
        result["metrics"] |= {key: value for key, value in slowest["metrics"].items() if "cold_start" in key}
        worst = max(every, key=lambda each: each["metrics"].get("parity_rel_err", 0.0))
        result["metrics"] |= {key: value for key, value in worst["metrics"].items() if key.startswith("parity_")}
        seconds = self._ended - self._began
        audio_s, examples = (sum(each[key] for each in every) for key in ("audio_s", "examples"))
        if seconds > 0 and examples:
            result["metrics"] |= {
                "steady_s": seconds,
                "audio_x_realtime": audio_s / seconds,
                "examples_per_s": examples / seconds,
                "clips_per_s": sum(each["clips"] for each in every) / seconds,
            }
        nodes: dict[str, float] = {}
        for number, each in enumerate(every):
            if each["busy_s"] > 0:
                result["metrics"][f"actor{number}_audio_x_realtime"] = each["audio_s"] / each["busy_s"]
            nodes[each["node"]] = nodes.get(each["node"], 0.0) + each["audio_s"]
        if seconds > 0:
            for number, audio in enumerate(nodes.values()):
                result["metrics"][f"node{number}_audio_x_realtime"] = audio / seconds
        result["metrics"]["nodes"] = float(len(nodes))
        result["actors"] = [
            {key: each.get(key) for key in ("host", "node", "pid", "device", "precision", "parity", "clips", "audio_s")}
            for each in every
        ]
        names = sorted({str((each.get("device") or {}).get("name")) for each in every})
        if len(names) > 1:
            warn(f"actors ran on different devices: {', '.join(names)}", self._events, result)

    def _progress(self) -> None:
        overall, skipped, _ = totals(self.writer.done)
        clips = sum(entry.clips for entry in self.writer.done.values())
        self._events.send(
            "progress",
            clips=clips,
            session_clips=clips - self._before,
            skipped=sum(skipped.values()),
            examples=overall["examples"],
            audio_s=sum(each["audio_s"] for each in self._actors.values()),
            elapsed_s=max(self._ended - self._began, 0.0),
        )


def _as_raised(error: dict[str, Any]) -> Exception:
    """An actor's failure as the local engine would have raised it."""
    from runner import errors

    kinds = {
        "weights": errors.WeightsError,
        "skipped": errors.SkippedError,
        "dataset": errors.DatasetError,
        "parity": errors.ParityError,
        "device": errors.DeviceError,
        "out_of_memory": MemoryError,
    }
    return kinds.get(error["kind"], EngineError)(error["message"])

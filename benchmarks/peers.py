"""The runner beside its peers on the same files and weights: ``python -m benchmarks.peers``.

Every contestant runs in a process of its own, one after another, several rounds interleaved; printed are medians.  A
speed is seconds of audio over seconds from a loaded model to the last embedding, by wall and by processor seconds of
all its processes.  A peer that is not installed is reported as such.  Needs ``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import KINDS, SECONDS, make_checkpoint, make_clips
from runner.devices.host import host_facts
from runner.vggish.constants import FLOP_AN_EXAMPLE

PROJECT = Path(__file__).resolve().parents[1]
RUNNER = {
    "runner float32": ("precision=float32",),
    "runner float32, direct": ("precision=float32", "model.conv=direct"),
    "runner auto": ("precision=auto",),
}
"""Contestants that are this project's own command, and what they are given."""
FLOAT32 = ("google-style", "torchvggish", "torchvggish-batched", "onnxruntime", "essentia")
PEERS = (*FLOAT32, "torchvggish-batched-bfloat16")
CONTESTANTS = {
    "wav16": (*RUNNER, *PEERS),
    "flac44": ("runner float32", "runner auto", "google-style"),
    "ogg44": ("runner float32", "runner auto", "google-style"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=90, help="of ten seconds, a data set")
    parser.add_argument("--kinds", nargs="*", default=["wav16", "flac44", "ogg44"], choices=list(KINDS))
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "benchmark")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(folder)
    ceiling = _output([sys.executable, "-m", "benchmarks.ceiling"])
    print(_machine(ceiling), flush=True)
    everything: dict[str, Any] = {"ceiling": ceiling, "host": host_facts(), "kinds": {}}
    for kind in options.kinds:
        clips = make_clips(folder, kind, options.clips)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS[kind]}
        for number in range(options.rounds):
            for name in found:
                print(f"{kind} round {number + 1} {name}", file=sys.stderr, flush=True)
                found[name].append(_run(name, clips[0].parent, folder, checkpoint))
        everything["kinds"][kind] = found
        (folder / "peers.json").write_text(json.dumps(everything))
        print(_table(kind, found, ceiling, SECONDS * options.clips), flush=True)


def _run(name: str, clips: Path, folder: Path, checkpoint: Path) -> dict[str, Any]:
    try:
        if name in RUNNER:
            return _run_runner(RUNNER[name], clips, folder, checkpoint)
        return _output([sys.executable, "-m", "benchmarks.peer", name, str(clips), str(folder / "weights.npz")])
    except subprocess.CalledProcessError as error:
        return {"failed": error.stderr.strip().splitlines()[-1][:100]}


def _run_runner(arguments: Sequence[str], clips: Path, folder: Path, checkpoint: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    run_dir = folder / "run"
    subprocess.run(["rm", "-rf", str(run_dir)], check=True)
    command = [sys.executable, "-m", "runner", f"dataset.root={clips}", "weights=file", f"weights.path={checkpoint}"]
    command += ["device=cpu", "tracking=none", f"output.dir={run_dir}", f"paths.models={folder / 'models'}", *arguments]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    metrics = json.loads((run_dir / "result.json").read_text())["metrics"]
    rows = pq.read_table(run_dir / "embeddings")["embedding"].to_numpy()
    return {
        "load_s": metrics["startup_s"],
        "wall_s": metrics["steady_s"],
        "cpu_s": metrics["steady_cpu_s"] + metrics["decode_cpu_s"],
        "peak_mib": metrics["rss_peak_mib"] + metrics["decode_rss_peak_mib"],
        "rows": len(rows),
        "first": np.stack(rows[:10]).tolist(),
    }


def _output(command: list[str]) -> Any:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _machine(ceiling: dict[str, dict[str, float]]) -> str:
    facts = host_facts()
    products = ", ".join(
        f"{name} {speed['cpu']:.0f} GFLOP per core-second ({speed['cpu'] * 1e9 / FLOP_AN_EXAMPLE:.0f} examples)"
        for name, speed in ceiling.items()
    )
    return f"{facts.get('cpu')}, {len(os.sched_getaffinity(0))} cores; matrix products: {products}"


def _table(kind: str, found: dict[str, list[dict[str, Any]]], ceiling: dict[str, Any], audio_s: float) -> str:
    lines = [
        f"\n{kind}: {audio_s / 60:.0f} minutes, medians of {len(next(iter(found.values())))} rounds",
        f"{'':30s} {'× realtime':>10s} {'per core-s':>10s} {'load s':>7s} {'peak MiB':>9s} {'ceiling':>8s} "
        f"{'max error':>10s}",
    ]
    reference = next((np.array(runs[0]["first"]) for runs in found.values() if "first" in runs[0]), np.empty(0))
    speeds = {}
    for name, runs in found.items():
        if failures := [run["failed"] for run in runs if "failed" in run]:
            lines.append(f"{name:30s} not measured: {failures[0]}")
            continue
        middle = {key: statistics.median(run[key] for run in runs) for key in ("load_s", "wall_s", "cpu_s", "peak_mib")}
        speeds[name] = (audio_s / middle["wall_s"], audio_s / middle["cpu_s"])
        precision = "bfloat16" if "bfloat16" in name or name == "runner auto" else "float32"
        share = speeds[name][1] / SECONDS * runs[0]["rows"] / (audio_s / SECONDS)
        share /= ceiling[precision]["cpu"] * 1e9 / FLOP_AN_EXAMPLE
        first = np.array(runs[0]["first"])
        error = np.abs(first - reference).max() / np.abs(reference).max() if first.shape == reference.shape else np.nan
        lines.append(
            f"{name:30s} {speeds[name][0]:10.1f} {speeds[name][1]:10.1f} {middle['load_s']:7.1f} "
            f"{middle['peak_mib']:9.0f} {share:8.0%} {error:10.1e}"
        )
    peers = [name for name in FLOAT32 if name in speeds]
    if peers:
        best = max(peers, key=lambda name: speeds[name][1])
        for name in RUNNER:
            if name in speeds:
                ratios = ", ".join(
                    f"{speeds[name][0] / speeds[peer][0]:.2f} ({speeds[name][1] / speeds[peer][1]:.2f}) × {peer}"
                    for peer in dict.fromkeys((best, *peers))
                )
                lines.append(f"{name}: by wall (by core) {ratios}; the best float32 peer is {best}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

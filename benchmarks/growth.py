"""Does time grow with audio alone, and memory with nothing?  ``python -m benchmarks.growth``.

Runs the command on 10 minutes, 1 hour and 10 hours of ten-second clips, on 1,000 to 100,000 clips of half a second, and
on one file of four hours; prints times, the processor time a clip costs beside its examples, and peak memory, and plots
memory against clips.  Then all but the network (decoding, slots, shards) on 1 to 64 clips of ten hours in one shard,
which the network would take hours for (``--engine``: that alone).  Takes about fifteen minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.data import recording

PROJECT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measure, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "benchmark" / "growth")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--memory", default="conservative")
    parser.add_argument("--engine", action="store_true", help="only the long clips without the network")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    if options.engine:
        _without_network(folder / "engine", options.memory)
        return
    settings = (f"precision={options.precision}", f"memory={options.memory}")
    print(f"{'':28s} {'audio s':>9s} {'steady s':>9s} {'× realtime':>10s} {'core-s':>8s} {'peak MiB':>9s}", flush=True)
    long = {}
    for name, clips in (("10 minutes", 60), ("1 hour", 360), ("10 hours", 3600)):
        long[clips] = _run(name, _links(folder / "long", clips, 10.0), settings)
    per_second = {clips: found["steady_s"] / found["audio_s"] for clips, found in long.items()}
    print(f"10 hours take {per_second[3600] / per_second[360]:.3f} × the time an audio second of 1 hour")
    core_s_an_example = long[3600]["core_s"] / long[3600]["examples"]
    short = {}
    for clips in (1_000, 10_000, 100_000):
        short[clips] = _run(f"{clips:,} clips of 0.5 s", _links(folder / "short", clips, 0.5), settings)
    most = short[100_000]
    beside = (most["core_s"] - most["examples"] * core_s_an_example) / 100_000
    print(f"a clip of 0.5 s costs {1000 * beside:.2f} ms of processor time beside its example")
    whole = folder / "four_hours"
    whole.mkdir(parents=True, exist_ok=True)
    for rate in (16_000, 44_100):
        for old in whole.iterdir():
            old.unlink()
        with soundfile.SoundFile(whole / "long.wav", "w", rate, 1, "PCM_16") as file:
            minute = np.tile(recording(0, rate, 1), (6, 1))
            for _ in range(240):
                file.write(minute)
        _run(f"one file of 4 hours, {rate} Hz", whole, settings)
    _plot(folder / "memory.png", {clips: found["peak_mib"] for clips, found in short.items()})
    shutil.rmtree(whole)
    _without_network(folder / "engine", options.memory)


def _without_network(folder: Path, memory: str) -> None:
    """Peak memory of everything but the network on clips of ten hours: zeros, in a file that takes no room."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    samples = 16_000 * 36_000
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 2 * samples, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2,
                         16, b"data", 2 * samples)  # fmt: skip
    (folder / "0.wav").write_bytes(header)
    os.truncate(folder / "0.wav", len(header) + 2 * samples)
    for number in range(1, 64):
        os.link(folder / "0.wav", folder / f"{number}.wav")
    print(
        f"{'without the network':28s} {'audio s':>9s} {'seconds':>9s} {'on disk MiB':>12s} {'peak MiB':>9s}", flush=True
    )
    for clips in (1, 8, 64):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(_engine, folder, clips, memory).result()
        name = f"{clips} clips of 10 hours"
        print(f"{name:28s} {36_000 * clips:9,.0f} {found[0]:9.1f} {found[1]:12.0f} {found[2]:9.0f}", flush=True)
    shutil.rmtree(folder)


def _engine(folder: Path, clips: int, memory: str) -> tuple[float, float, float]:
    """Seconds, MiB of embeddings that waited on disk, and peak MiB of this process."""
    from runner.config.composition import compose_config
    from runner.core.span import Span
    from runner.dataset.clips import Clip
    from runner.output.formats import make_formats
    from runner.output.rows import EmbeddingInfo
    from runner.output.state.journal import Journal
    from runner.output.writer import ShardFiles, ShardWriter, make_spill
    from runner.pipeline.decode_pool import DecodePool, decode_options
    from runner.pipeline.messages import Replica
    from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
    from runner.vggish.spec import VGGISH

    config = compose_config(["weights=random", f"memory={memory}"])
    listed = [Clip(n, f"{n}.wav", os.fsencode(folder / f"{n}.wav"), None, None, None, -1) for n in range(clips)]
    run_dir = folder / f"run{clips}"
    run_dir.mkdir()
    pool = DecodePool(decode_options(config), 2)
    pool.open(2, 3, 128)
    info = EmbeddingInfo({}, 0.96, VGGISH.outputs)
    writer = ShardWriter(
        ShardFiles(run_dir, info, make_formats(config.output, run_dir, info, [])), Journal(run_dir / "journal")
    )
    spill = make_spill(run_dir, config)
    engine = EmbeddingPipeline(
        ShardedClips([Span(0, clips)], iter(listed)), pool, writer, shutdown_timeout_s=10, spill=spill
    )
    start = time.perf_counter()
    engine.run([Replica("none", lambda windows, copied: np.ones((len(windows), 128), np.float32))])
    seconds = time.perf_counter() - start
    pool.close()
    return seconds, spill.spilled / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _links(folder: Path, clips: int, seconds: float) -> Path:
    """A folder of ``clips`` names for one of a few recordings: listing, decoding and writing take them for files."""
    shutil.rmtree(folder, ignore_errors=True)
    sources = folder.with_name(f"{folder.name}_sources")
    sources.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    for number in range(20):
        soundfile.write(sources / f"{number}.wav", recording(number, 16_000, 1)[: int(16_000 * seconds)], 16_000)
    for number in range(clips):
        os.link(sources / f"{number % 20}.wav", folder / f"{number:06d}.wav")
    return folder


def _run(name: str, root: Path, settings: tuple[str, ...]) -> dict[str, float]:
    run_dir = root.with_name("run")
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, "-m", "runner", f"dataset.root={root}", "weights=random", "device=cpu", "tracking=none"]
    done = subprocess.run(
        [*command, f"output.dir={run_dir}", *settings], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    result: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    found = dict(result["metrics"])
    found["core_s"] = found["steady_cpu_s"] + found["decode_cpu_s"]
    found["peak_mib"] = found["rss_peak_mib"]
    print(
        f"{name:28s} {found['audio_s']:9.0f} {found['steady_s']:9.1f} {found['realtime_factor']:10.1f} "
        f"{found['core_s']:8.1f} {found['peak_mib']:9.0f}",
        flush=True,
    )
    return found


def _plot(path: Path, peaks: dict[int, float]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3))
    axes.semilogx(list(peaks), list(peaks.values()), marker="o")
    axes.set(xlabel="clips", ylabel="worker's peak memory, MiB", ylim=(0, 1.2 * max(peaks.values())))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


if __name__ == "__main__":
    main()

"""Does time grow with audio alone, and memory with nothing?  ``python -m tests.benchmarks.growth``.

Runs the command on 10 minutes, 1 hour and 10 hours of ten-second clips, on 1,000 to 100,000 clips of half a second, and
on one file of four hours; prints times, the processor time a clip costs beside its examples, and peak memory, and plots
memory against clips.  Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.benchmarks.data import recording

PROJECT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "benchmark" / "growth")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--memory", default="conservative")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
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
        f"{name:28s} {found['audio_s']:9.0f} {found['steady_s']:9.1f} {found['audio_x_realtime']:10.1f} "
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

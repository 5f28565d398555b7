"""The runner beside PyTorch on a GPU, on the same files: ``python -m benchmarks.gpu``.

Ten-second clips: 16 kHz mono WAV, and stereo WAV, FLAC, Ogg Vorbis, MP3 and Opus of 44.1 or 48 kHz, in memory-backed
storage (``--folder``); every clip is a file of its own name, of which ``--distinct`` are recordings of their own and
the rest hard links to them.  Every contestant runs in a process of its own, rounds interleaved, medians printed; speeds
are × realtime from a ready model to the last result (the runner's with its Parquet files written).  Beside audio at
other rates: what all cores decode, and decode and resample, with no GPU at all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data import make_checkpoint, make_clips
from runner.devices.host import usable_cores

PROJECT = Path(__file__).resolve().parents[1]
MODES = {
    "runner auto": ("precision=auto",),
    "runner bfloat16": ("precision=bfloat16",),
    "runner tf32": ("precision=tf32",),
    "runner float32": ("precision=float32",),
}
PEERS = ("pytorch-pipeline", "torchvggish")
SLOW = {"torchvggish": 300, "runner float32": 40_000, "runner tf32": 60_000}
"""Contestants that get fewer clips, so that a round ends in time."""
CORES = ("cores decoding", "cores resampling")
"""What all cores do alone: libsndfile's decoder, and decoding and resampling as decode processes do."""

CONTESTANTS = {
    "wav16": ("runner auto", "pytorch-pipeline", "torchvggish", "runner bfloat16", "runner tf32", "runner float32"),
    **dict.fromkeys(("wav44", "flac44", "ogg44", "mp344", "opus48"), ("runner auto", *CORES)),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wav", type=int, default=120_000, help="clips")
    parser.add_argument("--flac", type=int, default=6_000, help="clips")
    for name in ("wav44", "ogg", "mp3", "opus"):
        parser.add_argument(f"--{name}", type=int, default=0, help="clips")
    parser.add_argument("--distinct", type=int, default=200, help="recordings")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/vggish-benchmark"))
    parser.add_argument("--only", nargs="*", help="contestants")
    parser.add_argument("runner", nargs="*", help="further settings for the runner, such as device.index=all")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(folder)
    found: dict[str, Any] = {}
    asked_for = (options.wav, options.wav44, options.flac, options.ogg, options.mp3, options.opus)
    for kind, clips in zip(CONTESTANTS, asked_for, strict=True):
        if not clips:
            continue
        names = [name for name in CONTESTANTS[kind] if not options.only or name in options.only]
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in names:
                count = min(clips, SLOW.get(name, clips))
                if number and name in SLOW:
                    continue
                data = make_many(folder, kind, count, options.distinct)
                print(f"{kind} round {number + 1} {name}", file=sys.stderr, flush=True)
                taken[name].append(_run(name, data, folder, checkpoint, options.runner))
        found[kind] = taken
        print(_table(kind, taken), flush=True)
    print(json.dumps(found))


def make_many(folder: Path, kind: str, clips: int, distinct: int) -> Path:
    """A folder of so many clips, hard links to a few recordings, a thousand a subfolder."""
    many = folder / f"{kind}-{clips}"
    if many.exists():
        return many
    recordings = make_clips(folder, kind, min(distinct, clips))
    unfinished = folder / f".{many.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    for number in range(clips):
        own = unfinished / f"{number // 1000:04d}"
        if number % 1000 == 0:
            own.mkdir(parents=True)
        source = recordings[number % len(recordings)]
        os.link(source, own / f"{number:07d}{source.suffix}")
    unfinished.rename(many)
    return many


def _run(name: str, clips: Path, folder: Path, checkpoint: Path, further: list[str]) -> dict[str, float]:
    if name in CORES:
        return _cores_alone(clips, decode if name == "cores decoding" else decode_and_resample)
    if name in MODES:
        return _runner(clips, folder, checkpoint, [*MODES[name], *further])
    command = [sys.executable, "-m", "benchmarks.gpu_peer", name, str(clips), str(folder / "weights.npz")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _runner(clips: Path, folder: Path, checkpoint: Path, settings: list[str]) -> dict[str, float]:
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, "-m", "runner", f"dataset.root={clips}", "weights=file", f"weights.path={checkpoint}"]
    command += ["device=gpu", "device.strict=true", "tracking=none", f"output.dir={run_dir}"]
    command += [f"paths.models={folder / 'models'}", *settings]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the runner failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    result = json.loads((run_dir / "result.json").read_text())
    metrics = result["metrics"]
    return {"x_realtime": metrics["realtime_factor"], "load_s": metrics["startup_s"], **metrics}


def _cores_alone(clips: Path, work: Callable[[str], float]) -> dict[str, float]:
    """As many processes as cores at work on the files, and nothing else."""
    paths = sorted(str(path) for path in clips.rglob("*.*"))
    cores = usable_cores()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(work, paths[: 4 * cores], 1)
        start = time.perf_counter()
        seconds = sum(pool.imap_unordered(work, paths, 16))
    return {"x_realtime": seconds / (time.perf_counter() - start), "load_s": 0.0}


def decode(path: str) -> float:
    """Seconds of audio of a file, all of it decoded by libsndfile, to the type that is the faster one."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="int16" if path.endswith(("flac", "wav")) else "float32")
    return len(samples) / float(rate)


def decode_and_resample(path: str) -> float:
    """Seconds of audio of a file, all of it decoded and resampled."""
    from runner.audio.preparation import Preparation
    from runner.audio.reader import read_clip

    with read_clip(path, preparation=Preparation(16_000)) as clip:
        for _ in clip:
            pass
        return clip.seconds


def _table(kind: str, taken: dict[str, list[dict[str, float]]]) -> str:
    lines = [f"\n{kind}: medians of {len(next(iter(taken.values())))} rounds"]
    columns = f"{'':20s} {'× realtime':>11s} {'model only':>11s} {'TFLOP/s':>8s} {'of peak':>8s} {'load s':>7s}"
    lines.append(f"{columns}  busy shares")
    speed = {}
    for name, runs in taken.items():
        middle = {key: statistics.median(run[key] for run in runs if key in run) for key in runs[0]}
        speed[name] = middle["x_realtime"]
        alone = middle.get("model_only_realtime_factor")
        lines.append(
            f"{name:20s} {speed[name]:11,.0f} {f'{alone:,.0f}' if alone else '-':>11s} "
            f"{middle.get('model_only_tflops', float('nan')):8.0f} "
            f"{middle.get('model_only_share_of_peak', float('nan')):8.0%} {middle['load_s']:7.1f}  "
            + ", ".join(f"{key[: -len('_busy_share')]} {value:.2f}" for key, value in middle.items() if "_busy_" in key)
        )
    ours = speed.get("runner auto")
    if ours:
        others = {name: ours / value for name, value in speed.items() if name != "runner auto"}
        lines.append("runner auto: " + ", ".join(f"{ratio:.2f} × {name}" for name, ratio in others.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

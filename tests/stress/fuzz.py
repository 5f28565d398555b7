"""Feeds broken input to all that reads input: ``python -m tests.stress.fuzz --seconds 300`` (``make fuzz``).

Mutated audio files through decode processes, engine and log-mel, and through what looks for their lengths; mutated
manifests, journals, plans, checkpoints and PCA files; odd overrides.  Whatever comes, only the documented errors may: a
clip ends embedded or skipped with a reason of ``runner.audio.REASONS``, and the readers raise their own error.  A case
that breaks this is kept in the folder that is printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

Case = tuple[bytes, str]
"""Bytes, and the extension of the file to put them into."""


_OURS = ("AssertionError", "TypeError", "ValueError", "IndexError")
"""Errors in a clip's detail that no decoder raises: they would be our own."""


def rounds(until: float, least: int = 50) -> Iterator[int]:
    """Count rounds up to a time by ``time.monotonic``, but at least so many."""
    return itertools.takewhile(lambda number: number < least or time.monotonic() < until, itertools.count())


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or moved; the more often near the beginning, where headers are."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not found:
            break
        place = int(len(found) * rng.random() ** 3)
        length = rng.choice([1, 1, 2, 4, 8, 64])
        kind = rng.randrange(6)
        if kind == 0:
            found[place] = rng.randrange(256)
        elif kind == 1:
            found[place : place + length] = rng.choice([b"\0", b"\xff", b"\x7f\xff"]) * length
        elif kind == 2:
            del found[place : place + length]
        elif kind == 3:
            found[place:place] = found[place : place + length]
        elif kind == 4:
            del found[rng.randrange(len(found)) :]
        else:
            found[place:place] = rng.randbytes(length)
    return bytes(found)


def audio_seeds() -> list[Case]:
    """Small files of every format that libsndfile writes and people have."""
    rng = np.random.default_rng(0)
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        for extension, subtype, rate, channels in (
            ("wav", "PCM_16", 16_000, 1),
            ("wav", "PCM_24", 44_100, 2),
            ("wav", "FLOAT", 16_000, 1),
            ("wav", "IMA_ADPCM", 16_000, 1),
            ("wav", "GSM610", 8_000, 1),
            ("flac", "PCM_16", 44_100, 2),
            ("ogg", "VORBIS", 22_050, 1),
            ("mp3", "MPEG_LAYER_III", 44_100, 2),
            ("opus", "OPUS", 48_000, 1),
            ("aiff", "PCM_16", 16_000, 1),
            ("w64", "PCM_16", 16_000, 1),
            ("au", "PCM_16", 8_000, 1),
            ("caf", "ALAC_16", 16_000, 1),
        ):
            path = Path(folder) / f"x.{extension}"
            kind = {"opus": "OGG"}.get(extension)
            soundfile.write(path, rng.uniform(-0.5, 0.5, (rate + 500, channels)), rate, subtype=subtype, format=kind)
            seeds.append((path.read_bytes(), extension))
    return seeds + stream_seeds({extension: data for data, extension in seeds})


def stream_seeds(files: dict[str, bytes]) -> list[Case]:
    """Whole files that don't state their length, or consist of several."""
    flac, mp3, ogg, opus = (files[extension] for extension in ("flac", "mp3", "ogg", "opus"))
    stream = mp3[mp3.find(mp3[:2], 100) :]  # without the frame that states the length
    return [
        (flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:], "flac"),
        (flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 9, 9]) + flac[26:], "flac"),
        (stream, "mp3"),
        (mp3 + mp3, "mp3"),
        (stream + bytes(5000) + stream, "mp3"),
        (ogg + ogg, "ogg"),
        (opus + opus, "opus"),
    ]


def fuzz_audio(rng: random.Random, until: float, keep: Path) -> Counter[str]:
    """Mutated audio through the engine, a few hundred files at a time."""
    from runner.audio.framing import scaled
    from runner.audio.reader import REASONS
    from runner.config.schema import OutputConfig
    from runner.dataset.clips import Clip
    from runner.dataset.shards import plan_shards
    from runner.output.formats import make_formats
    from runner.output.writer import clips_table
    from runner.pipeline.decode_pool import DecodePool
    from runner.pipeline.messages import Replica
    from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
    from runner.vggish.reference import reference_log_mel
    from tests.vggish_clips import OPTIONS
    from tests.writers import journaled_writer, vggish_info

    seeds = audio_seeds()
    counted: Counter[str] = Counter()
    options = replace(OPTIONS, max_duration_s=600)
    for _ in rounds(until, 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            clips = []
            for number in range(400):
                data, extension = rng.choice(seeds)
                path = folder / f"{number}.{extension}"
                path.write_bytes(mutate(data, rng))
                start, end = rng.choice([(None, None), (None, None), (0.1, 0.9), (0.5, None), (3.0, 4.0), (None, 1e9)])
                clips.append(Clip(number, path.name, os.fsencode(path), start, end, None, path.stat().st_size))
            writer = journaled_writer(folder, make_formats(OutputConfig(), folder, vggish_info(), []))
            pool = DecodePool(options, 2, decode_timeout_s=20)
            pool.open(2, 3, 32)

            def embed(windows: np.ndarray, copied: object) -> np.ndarray:
                if not np.isfinite(reference_log_mel(scaled(windows[:2]))).all():
                    raise AssertionError("log-mel is not finite")
                return np.zeros((len(windows), 128), np.float32)

            try:
                with clips_table(folder, writer.committed, {}):
                    EmbeddingPipeline(
                        ShardedClips(plan_shards(len(clips), 64), iter(clips)), pool, writer, shutdown_timeout_s=10
                    ).run([Replica("x", embed)])
            finally:
                pool.close()
            ends = pq.read_table(folder / "clips.parquet").to_pylist()
            assert [end["clip"] for end in ends] == [clip.name for clip in clips]
            for end in ends:
                counted[end["reason"] or "embedded"] += 1
                sound = end["status"] == "embedded" or end["reason"] in REASONS
                unexpected = (end["detail"] or "").startswith(_OURS)
                if not sound or unexpected or end["reason"] in ("decoder_crashed", "timeout"):
                    shutil.copy(folder / end["clip"], keep / f"audio-{rng.randrange(10**9)}-{end['clip']}")
                    counted["UNEXPECTED"] += not sound or unexpected
                    print(f"kept {end['clip']}: {end['reason']}: {end['detail']}", flush=True)
    return counted


def fuzz_lengths(rng: random.Random, until: float, keep: Path) -> Counter[str]:
    """Mutated audio through all that looks for lengths in containers."""
    from runner.audio.lengths import fixed_header, stated_bytes
    from runner.audio.stream_ends import flac_end, mpeg_header, next_mpeg_frame, ogg_link

    def read(path: Path) -> None:
        name = str(path)
        for container in ("WAV", "W64", "AIFF", "CAF", "AU", "NIST", "VOC", "AVR", "HTK", "WVE", "MPC2K"):
            found = stated_bytes(name, container)
            assert found is None or 0 <= found.present <= path.stat().st_size, (container, found)
        fixed_header(name)
        for begin in (0, rng.randrange(path.stat().st_size + 1)):
            mpeg_header(name, begin)
            next_mpeg_frame(name, begin)
            following = ogg_link(name, begin).next_link
            assert following is None or following > begin
        flac_end(name)

    return _fuzz_reader("lengths", read, OSError, audio_seeds(), rng, until, keep)


def fuzz_manifest(rng: random.Random, until: float, keep: Path) -> Counter[str]:
    """Mutated CSV and Parquet manifests."""
    from runner.config.schema import ManifestDataset
    from runner.core.errors import DatasetError
    from runner.dataset.manifest import build_manifest

    def read(path: Path) -> None:
        build_manifest(ManifestDataset(path=str(path)), path.parent)

    csv = b'path,start,end,label\na.wav,0,1.5,dog\n"b ""q"".wav",,,\nc/d.wav,1e1,20,\xc3\xa9\n'
    table = pa.table({"path": ["a.wav", "b.wav"], "start": [0.0, 1.0], "end": [1.0, None], "label": ["x", None]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    seeds = [(csv, "csv"), (sink.getvalue().to_pybytes(), "parquet")]
    return _fuzz_reader("manifest", read, DatasetError, seeds, rng, until, keep)


def fuzz_state(rng: random.Random, until: float, keep: Path) -> Counter[str]:
    """Mutated journals and plans: a journal is read whatever it holds, a plan or its own error."""
    from runner.core.errors import ConfigError
    from runner.core.files import FileDigest
    from runner.output.state.journal import Journal, ShardCounts, ShardEntry, read_journal
    from runner.output.state.plan_file import check_output_folder
    from tests.configs import make_config

    config = make_config()

    def read(path: Path) -> None:
        read_journal(path)
        state = path.parent / ".runner"
        state.mkdir(exist_ok=True)
        shutil.copy(path, state / "plan.json")
        check_output_folder(path.parent, config)

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        for shard in range(3):
            files = {"embeddings/part-00000.parquet": FileDigest(5, "ab")}
            journal.append(ShardEntry(shard, 2, 20, files, ShardCounts(embedded=2)))
        journal.close()
        data = (Path(folder) / "journal").read_bytes()
    plan = (
        b'{"schema": 3, "id": "x", "settings": {"precision.name": "float32"}, "shards": [[0, 3], [3, 6]], '
        b'"row_digests": ["a", "b"], "partition": null}'
    )
    return _fuzz_reader("state", read, ConfigError, [(data, "jsonl"), (plan, "json")], rng, until, keep)


def fuzz_weights(rng: random.Random, until: float, keep: Path) -> Counter[str]:
    """Mutated checkpoints and PCA files."""
    import tensorflow.compat.v1 as tf

    from runner.core.errors import WeightsError
    from runner.vggish.checkpoint import load_checkpoint
    from runner.vggish.postprocess import load_pca

    def read(path: Path) -> None:
        (load_pca if path.suffix == ".npz" else load_checkpoint)(str(path))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for version in (tf.train.SaverDef.V1, tf.train.SaverDef.V2):
            with tf.Graph().as_default(), tf.Session() as session:
                tf.Variable(tf.zeros([3, 3, 1, 64]), name="vggish/conv1/weights")
                session.run(tf.global_variables_initializer())
                tf.train.Saver(write_version=version).save(session, str(folder / f"v{version}"), write_meta_graph=False)
        np.savez(folder / "pca.npz", pca_eigen_vectors=np.eye(128), pca_means=np.zeros((128, 1)))
        seeds = [(path.read_bytes(), path.suffix[1:] or "ckpt") for path in folder.iterdir() if path.stat().st_size]
    return _fuzz_reader("weights", read, WeightsError, seeds, rng, until, keep)


def fuzz_overrides(rng: random.Random, until: float, keep: Path) -> Counter[str]:
    """Odd overrides on the command line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.config.composition import compose_config, format_hydra_error
    from runner.core.errors import RunnerError

    keys = "device device.index memory memory.batch_size precision weights weights.seed dataset dataset.root output "
    keys += "dataset.max_skipped output.formats frontend.hop_s parity.tolerances engine paths.models profile nothing"
    values = ["", "null", "-1", "0", "1e400", "nan", "true", "[a,b]", "{a:b}", "${oc.env:HOME}", "${x}", "'", '"', "\\"]
    values += ["gpu", "auto", "all", "float16", "ü", "a b", "$(ls)", "../..", "0x10", "1_000", "[]", "a=b", "???"]
    counted: Counter[str] = Counter()
    for _ in rounds(until):
        given = [
            rng.choice(["", "", "+", "~", "++"]) + rng.choice(keys.split()) + rng.choice(["=", "=", "@x=", ""])
            + rng.choice(values)
            for _ in range(rng.choice([1, 1, 2, 3]))
        ]  # fmt: skip
        try:
            compose_config(given)
            counted["accepted"] += 1
        except (RunnerError, HydraException, OmegaConfBaseException) as error:
            format_hydra_error(error)
            counted["refused"] += 1
        except Exception:
            counted["UNEXPECTED"] += 1
            (keep / f"overrides-{rng.randrange(10**9)}.txt").write_text(f"{given}\n{traceback.format_exc()}")
            print(f"unexpected: {given}: {traceback.format_exc(limit=-1)}", flush=True)
    return counted


def _fuzz_reader(
    name: str,
    read: Callable[[Path], object],
    expected: type[Exception],
    seeds: list[Case],
    rng: random.Random,
    until: float,
    keep: Path,
) -> Counter[str]:
    counted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for _ in rounds(until):
            data, extension = rng.choice(seeds)
            path = Path(folder) / f"case.{extension}"
            path.write_bytes(mutate(data, rng))
            shutil.copy(path, keep / f"{name}-under-way.{extension}")  # should the process die of it
            try:
                read(path)
                counted["read"] += 1
            except expected:
                counted["refused"] += 1
            except Exception:
                counted["UNEXPECTED"] += 1
                shutil.copy(path, keep / f"{name}-{rng.randrange(10**9)}.{extension}")
                print(f"unexpected in {name}: {traceback.format_exc(limit=-3)}", flush=True)
    for path in keep.glob(f"{name}-under-way.*"):
        path.unlink()
    return counted


TARGETS = {
    "audio": fuzz_audio,
    "lengths": fuzz_lengths,
    "manifest": fuzz_manifest,
    "state": fuzz_state,
    "weights": fuzz_weights,
    "overrides": fuzz_overrides,
}


def _target(name: str, seed: int, seconds: float, keep: Path) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    counted = TARGETS[name](random.Random(seed), time.monotonic() + seconds, keep)
    tries = sum(count for key, count in counted.items() if key != "UNEXPECTED")
    print(
        f"{name}: {tries:,} inputs: {', '.join(f'{count:,} {key}' for key, count in counted.most_common())}", flush=True
    )
    sys.exit(int(bool(counted["UNEXPECTED"])))


def main() -> int:
    """Fuzz each target in a process of its own, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="in all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "vggish-fuzz")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}; cases that break something are kept in {options.keep}", flush=True)
    failed = False
    for name in options.only:
        share = options.seconds / len(options.only)
        process = multiprocessing.get_context("spawn").Process(
            target=_target, args=(name, options.seed, share, options.keep)
        )
        process.start()
        process.join()
        if process.exitcode:
            failed = True
            print(f"{name}: exit status {process.exitcode}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

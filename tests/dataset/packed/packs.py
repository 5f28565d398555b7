"""Packed data sets made of ten sounds, and how their clips are listed and read."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from runner.config.schema import DatasetConfig, WebDataset
from runner.core.errors import ClipError
from runner.dataset.manifest import build_manifest
from runner.dataset.packed.clips import PackedClips
from runner.dataset.table import Manifest
from tests.configs import make_config
from tests.whole_run import session

EXTENSIONS = ["wav", "flac", "mp3"]


QUICK = (
    *("weights=random", "output.formats=[parquet,npz]", "output.clips_per_shard=4", "profile=off", "tracking=none"),
    *("device=cpu", "memory=conservative", "memory.decode_workers=2"),
)


def clip_bytes(number: int, form: str = "WAV", rate: int = 16_000, channels: int = 1) -> bytes:
    """A sound of one to three seconds."""
    sound = np.random.default_rng(number).uniform(-0.3, 0.3, ((1 + number % 3) * rate, channels))
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=form)
    return file.getvalue()


CLIPS = {
    **{f"cat/{number:03d}.wav": clip_bytes(number) for number in range(5)},
    "cat/short.wav": clip_bytes(1)[:9000],
    "dog/a b#c?.flac": clip_bytes(8, "FLAC", 44_100, 2),
    "dog/x.mp3": clip_bytes(9, "MP3", 44_100),
    "dog/ünï/ß.wav": clip_bytes(10),
    "empty.wav": b"",
    "no.wav": b"RIFF nothing",
}
"""In the order of their names' bytes, as a folder lists them."""


def pack(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def some(first: int, end: int) -> dict[str, bytes]:
    return dict(list(CLIPS.items())[first:end])


def write_parquet(path: Path, clips: dict[str, bytes], **columns: Any) -> Path:
    rows = [{"bytes": data, "path": name} for name, data in clips.items()]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [os.path.basename(os.path.dirname(name)) or None for name in clips]
    table = pa.table({"n": list(range(len(rows))), "audio": pa.array(rows, kind), "label": labels} | columns)
    pq.write_table(table, path, row_group_size=3)
    return path


def web(path: object, **settings: Any) -> WebDataset:
    return WebDataset(path=str(path), **({"extensions": EXTENSIONS} | settings))


def listed(dataset: DatasetConfig, outputs: Path | None = None) -> Manifest:
    return build_manifest(dataset, outputs or Path("/nonexistent"))


def rows_of(found: Manifest) -> dict[str, tuple[int, str | None]]:
    columns = (found.table[name].to_pylist() for name in ("clip", "bytes", "label"))
    return {clip: (size, label) for clip, size, label in zip(*columns, strict=True)}


def bytes_of(found: Manifest, **options: Any) -> dict[str, bytes | str]:
    """The bytes of each clip as a decode process gets them, or the reason why not."""
    clips = PackedClips(options.get("ahead", 2), options.get("timeout_s", 5))
    paths = found.table["path"].to_pylist()
    got: dict[str, bytes | str] = {}
    for job, (name, path) in enumerate(zip(found.table["clip"].to_pylist(), paths, strict=True)):
        try:
            with clips.open_clip(job, path, enumerate(paths[job + 1 :], job + 1), lambda: None) as file:
                got[name] = Path(file.path).read_bytes()
        except ClipError as error:
            got[name] = error.reason
    clips.close()
    return got


def embed(tmp_path: Path, name: str, *settings: str) -> tuple[dict[str, Any], Path]:
    run = tmp_path / name / "run"
    config = make_config(
        [*QUICK, f"paths.outputs={tmp_path}", f"paths.models={tmp_path}", f"output.dir={run}", *settings]
    )
    result = session(config, run)
    assert isinstance(result, dict), result
    assert result["status"] == "finished", result.get("failure")
    return result, run

"""Everything that a folder can hold besides good audio: each is embedded, skipped with a reason, or no clip at all."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.audio.reader import REASONS
from runner.config.schema import FolderDataset
from runner.dataset.clips import Clip
from runner.dataset.manifest import build_manifest
from runner.pipeline.messages import DecodeOptions
from tests import vggish_clips
from tests.conftest import PROJECT
from tests.pipeline.test_engine import run_engine

pytestmark = pytest.mark.slow

RATE = 16_000
OPTIONS = replace(vggish_clips.OPTIONS, max_duration_s=3600)
TONE = (8000 * np.sin(np.arange(2 * RATE) * 0.05)).astype("<i2")


def wav(
    path: Path,
    samples: np.ndarray = TONE,
    *,
    rate: int = RATE,
    channels: int = 1,
    form: int = 1,
    bits: int = 16,
    claims: int | None = None,
) -> None:
    """A WAV file whose header says whatever is asked of it."""
    data = samples.tobytes()
    align = channels * bits // 8 & 0xFFFF
    size = len(data) if claims is None else claims
    head = b"RIFF" + struct.pack("<I", min(36 + size, 0xFFFFFFFF)) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, form, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    path.write_bytes(head + b"data" + struct.pack("<I", size & 0xFFFFFFFF) + data)


def embed(folder: Path, out: Path, options: DecodeOptions = OPTIONS) -> dict[str, dict]:
    """What became of each clip of a folder, by name."""
    manifest = build_manifest(FolderDataset(root=str(folder), extensions=["wav", "flac", "mp3"]), out)
    rows = manifest.table.to_pylist()
    clips = [Clip(n, row["clip"], row["path"], None, None, None, row["bytes"]) for n, row in enumerate(rows)]
    out.mkdir()
    engine = run_engine(clips, out, workers=2, batch=32, shard=5, options=options)
    ends = pq.read_table(out / "clips.parquet").to_pylist()
    assert [row["clip"] for row in ends] == [clip.name for clip in clips]
    assert pq.read_table(out / "embeddings").num_rows == sum(row["examples"] for row in ends)
    assert engine.stats.progress.embedded + sum(engine.stats.progress.skipped.values()) == len(clips)
    for row in ends:
        assert row["status"] == "embedded" or row["reason"] in REASONS, row
        assert (row["status"] == "skipped") == (row["examples"] == 0), row
    return {row["clip"]: row for row in ends}


def test_things_that_are_no_files(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    wav(root / "good.wav")
    os.mkfifo(root / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket.wav"))
    (root / "folder.wav").mkdir()
    wav(root / "folder.wav" / "inside.wav")
    (root / "dangling.wav").symlink_to("nowhere.wav")
    (root / "loop.wav").symlink_to("loop.wav")
    (root / "round").symlink_to(root)
    if os.geteuid() == 0:
        os.mknod(root / "device.wav", 0o020600, os.makedev(1, 5))  # /dev/zero: it never ends
    rows = embed(root, tmp_path / "out")
    assert rows["good.wav"]["examples"] == 2
    assert rows["folder.wav/inside.wav"]["examples"] == 2
    assert {name: rows[name]["reason"] for name in ("pipe.wav", "socket.wav")} == dict.fromkeys(
        ("pipe.wav", "socket.wav"), "not_a_file"
    )
    if os.geteuid() == 0:
        assert rows["device.wav"]["reason"] == "not_a_file"
    assert rows["dangling.wav"]["reason"] == "missing"
    assert rows["loop.wav"]["reason"] == "unreadable"
    assert not [name for name in rows if name.count("round") > 1]


def test_a_file_without_permission() -> None:
    """Root may read everything, so a root reads it as nobody."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret.wav"
        wav(secret)
        secret.chmod(0)
        os.chmod(folder, 0o755)
        code = "import os, sys; from runner.audio.reader import read_clip; from tests.vggish_clips import PREPARATION\n"
        code += "os.getuid() or os.setuid(65534)\n"
        code += "try: read_clip(sys.argv[1], preparation=PREPARATION)\nexcept Exception as error: print(error.reason)"
        command = [sys.executable, "-c", code, str(secret)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout == "unreadable\n", done.stderr


def test_names(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    names = ["new\nline.wav", "quo\"te'.wav", "-rf.wav", "$(touch x).wav", "<b>&.wav", "a/same.wav", "b/same.wav"]
    names += ["n" * 251 + ".wav", "..wav.wav", " .wav", "%s%n.wav", "a;b.wav", "💿.wav", "CAPITALS.WAV"]
    for name in names:
        wav(root / name)
    with open(os.fsencode(root) + b"/\xff\xfe bytes.wav", "wb") as file:
        file.write((root / "-rf.wav").read_bytes())
    rows = embed(root, tmp_path / "out")
    assert set(names) <= set(rows)
    assert all(row["examples"] == 2 for row in rows.values())
    assert len(rows) == len(names) + 1


def test_headers_that_lie(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    wav(root / "rate_1.wav", rate=1)
    wav(root / "rate_4e9.wav", rate=4_000_000_000)
    wav(root / "rate_0.wav", rate=0)
    wav(root / "channels_0.wav", channels=0)
    wav(root / "channels_255.wav", np.zeros(255 * RATE, "<i2"), channels=255)
    wav(root / "claims_twice.wav", claims=2 * TONE.nbytes)
    wav(root / "claims_2e31_frames.wav", claims=0xFFFFFFFE)
    wav(root / "streaming.wav", claims=0xFFFFFFFF)
    wav(root / "size_0.wav", claims=0)
    (root / "cut.wav").write_bytes((root / "claims_twice.wav").read_bytes()[:30])
    floats = np.zeros(2 * RATE, "<f4")
    for name, value in (("nan", np.nan), ("inf", -np.inf)):
        floats[5] = value
        wav(root / f"{name}.wav", floats, form=3, bits=32)
    w64 = root / "claims_2e63.wav"
    soundfile.write(w64, TONE, RATE, format="W64")
    data = bytearray(w64.read_bytes())
    place = data.index(b"data") + 16
    data[place : place + 8] = struct.pack("<q", 2**63 - 1)
    w64.write_bytes(data)
    rows = embed(root, tmp_path / "out")
    reasons = {name.removesuffix(".wav"): (row["reason"], row["examples"]) for name, row in rows.items()}
    assert reasons["rate_1"][0] == "unsupported_rate"
    assert reasons["rate_4e9"][1] == reasons["rate_0"][1] == reasons["channels_0"][1] == 0
    assert reasons["channels_255"] == (None, 1)
    assert reasons["claims_twice"] == ("truncated", 2)
    assert reasons["claims_2e31_frames"] == (None, 2)
    assert reasons["streaming"] == (None, 2)
    assert reasons["nan"][0] == reasons["inf"][0] == "non_finite"
    assert reasons["cut"][1] == 0


def test_floats_of_another_scale_are_no_samples(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name, level, rate in (
        ("loud", 100, RATE),
        ("unscaled", 20_000, RATE),
        ("wild", 1e18, 44_100),
        ("mad", 1e38, RATE),
    ):
        soundfile.write(root / f"{name}.wav", np.float32(TONE / 8000 * level), rate, subtype="FLOAT")
    late = np.tile(np.float32(TONE / 8000), 10)
    late[-1] = 1e30  # the tail, which no example has
    soundfile.write(root / "late.wav", late, RATE, subtype="FLOAT")
    reasons = {name: row["reason"] for name, row in embed(root, tmp_path / "out").items()}
    assert reasons.pop("loud.wav") is None
    assert set(reasons.values()) == {"out_of_range"}


def test_a_truncated_file_is_kept_or_skipped_as_asked(tmp_path: Path, audio: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    wav(root / "half.wav", claims=2 * TONE.nbytes)
    (root / "half.mp3").write_bytes((audio / "hostile/a_trunc_60pct.mp3").read_bytes())
    kept = embed(root, tmp_path / "kept")
    assert {row["status"] for row in kept.values()} == {"embedded"}
    skipped = embed(root, tmp_path / "skipped", replace(OPTIONS, on_truncated="skip"))
    assert {(row["status"], row["reason"]) for row in skipped.values()} == {("skipped", "truncated")}
    assert all(row["detail"] for row in skipped.values())


def test_four_sparse_gibibytes_are_too_long_and_cost_nothing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name, rate in (("known.wav", RATE), ("other.wav", 8_000)):
        wav(root / name, np.zeros(0, "<i2"), rate=rate, claims=0xFFFF0000)
        os.truncate(root / name, 44 + 0xFFFF0000)
    rows = embed(root, tmp_path / "out", replace(OPTIONS, max_duration_s=60))
    assert {row["reason"] for row in rows.values()} == {"too_long"}


def test_a_file_that_grows_while_it_is_read_is_what_it_was_when_opened(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    wav(root / "grows.wav", np.tile(TONE, 100))
    manifest = build_manifest(FolderDataset(root=str(root), extensions=["wav"]), tmp_path)
    (row,) = manifest.table.to_pylist()
    (tmp_path / "out").mkdir()

    def growing(windows: np.ndarray) -> np.ndarray:
        with (root / "grows.wav").open("ab") as file:
            file.write(bytes(1000))
        return np.zeros((len(windows), 128), np.float32)

    run_engine([Clip(0, row["clip"], row["path"], None, None, None, row["bytes"])], tmp_path / "out", embed=growing)
    (row,) = pq.read_table(tmp_path / "out/clips.parquet").to_pylist()
    assert row["examples"] == 1 + (200 * RATE - 15_600) // 15_360

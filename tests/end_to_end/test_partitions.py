"""One job a machine: partitions, and whether they make the whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.cli.merge import main as merge
from runner.config.groups.dataset import parse_partition
from runner.config.schema import FolderDataset
from runner.core.errors import ConfigError, DatasetError
from runner.core.layout import FORMATS
from runner.dataset.manifest import build_manifest, select_partition
from tests.commands import run

SETTINGS = (
    *("weights=random", "tracking=none", "output.clips_per_shard=4", "profile=off"),
    *(f"output.formats=[{','.join(FORMATS)}]", "output.postprocess=audioset"),
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty clips of ten labels; one is broken."""
    folder = tmp_path_factory.mktemp("partitions") / "clips"
    rng = np.random.default_rng(3)
    for number in range(30):
        path = folder / f"label{number % 10}" / f"{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 16_000 + 1000 * number), 16_000)
    (folder / "label3" / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def runs(clips: Path) -> dict[str, Path]:
    """The whole as one run, and in three partitions as a sweep through Submitit's local launcher."""
    home = clips.parent
    whole = run(f"dataset.root={clips}", f"output.dir={home}/whole", *SETTINGS)
    assert whole.status == 0, whole.err
    parts = run(
        *("-m", "hydra/launcher=submitit_local", "dataset.partition=1/3,2/3,3/3", f"dataset.root={clips}", *SETTINGS),
        f"output.dir={home}/parts",
    )
    assert parts.status == 0, parts.err + parts.out
    assert "3 jobs, all finished" in parts.out
    together = " ".join(str(home / "parts" / str(number)) for number in range(3))
    assert f"Put them together: python -m runner merge {together} --output FOLDER" in parts.out
    assert "is the fastest" not in parts.out
    return {"whole": home / "whole", **{str(n + 1): home / "parts" / str(n) for n in range(3)}}


def parts_of(runs: dict[str, Path]) -> list[str]:
    return [str(runs[name]) for name in "123"]


def test_partitions_make_the_whole_bit_for_bit(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    merged = tmp_path / "merged"
    assert merge([*parts_of(runs), "--output", str(merged)]) == 0
    out = capsys.readouterr().out
    assert f"merged 3 of 3 partitions into {merged}" in out
    for name in ("embeddings", "clips.parquet"):
        ours, single = pq.read_table(merged / name), pq.read_table(runs["whole"] / name)
        assert ours.replace_schema_metadata(None).equals(single.replace_schema_metadata(None)), name
    shards = {path.name for path in (merged / "embeddings").iterdir()}
    assert shards == {path.name for path in (runs["whole"] / "embeddings").iterdir()}
    for folder in (each.folder for each in FORMATS.values() if each.folder != "embeddings" and not each.is_per_clip):
        names = {path.name for path in (runs["whole"] / folder).iterdir()} - {"metadata.json"}
        assert names, folder
        for name in names:
            assert (merged / folder / name).read_bytes() == (runs["whole"] / folder / name).read_bytes(), name
    npz = {path.relative_to(merged) for path in merged.rglob("*.npz")}
    assert npz == {path.relative_to(runs["whole"]) for path in runs["whole"].rglob("*.npz")}
    assert "31" in out
    assert merge([*parts_of(runs), "--output", str(merged)]) == 1


def test_what_is_no_whole_is_said(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    one, two, three = parts_of(runs)
    assert merge([one, two]) == 1
    assert "missing partitions: 3 (of 3)" in capsys.readouterr().err
    assert merge([one, two, two, three]) == 1
    assert "repeated partitions: 2" in capsys.readouterr().err
    assert merge([one, str(runs["whole"])]) == 1
    assert "is a run of the complete data set" in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(three, broken)
    next((broken / "embeddings").iterdir()).write_bytes(b"not what was written")
    assert merge([one, two, str(broken)]) == 1
    assert "is damaged" in capsys.readouterr().err
    unfinished = tmp_path / "unfinished"
    shutil.copytree(three, unfinished)
    journal = unfinished / ".runner" / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines(True)[0])
    assert merge([one, two, str(unfinished)]) == 1
    assert "is not finished: 1 of its 2 shards" in capsys.readouterr().err


def test_parts_are_a_deterministic_cut_without_overlap(clips: Path) -> None:
    whole = build_manifest(FolderDataset(root=str(clips), extensions=["wav"]), clips)
    parts = [select_partition(whole, which, 3, 4) for which in (1, 2, 3)]
    names = [set(part.table["clip"].to_pylist()) for part in parts]
    assert set.union(*names) == set(whole.table["clip"].to_pylist())
    assert sum(map(len, names)) == whole.table.num_rows
    assert [part.partition.shards for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert {part.partition.digest for part in parts} == {whole.digest}
    with pytest.raises(DatasetError, match="only 8 shards"):
        select_partition(whole, 9, 9, 4)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5"])
def test_what_is_no_partition_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not i/n"):
        parse_partition(text)

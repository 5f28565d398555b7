"""Another package's model, found by its entry point: the example of docs/guides/models.md, installed as a package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.commands import PROJECT, Done, run_real

pytestmark = pytest.mark.slow

EXAMPLE = PROJECT / "docs/examples/loudness_model"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that the example is installed into."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, folder / "source")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"),
            *("--target", str(folder / "site"), str(folder / "source")),
        ],
        check=True,
    )
    return folder / "site"


def run_with(site: Path, *arguments: str) -> Done:
    path = os.pathsep.join([str(site), str(PROJECT)])
    return run_real(*arguments, PYTHONPATH=path)


def test_the_example_is_short() -> None:
    assert len((EXAMPLE / "loudness_model.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_a_run_has_its_windows_outputs_and_classes(site: Path, few_clips: Path, tmp_path: Path) -> None:
    done = run_with(
        site,
        *(f"dataset.root={few_clips}", "model=loudness", "weights=random", "tracking=none", "profile=off"),
        *(f"paths.outputs={tmp_path}", f"paths.models={tmp_path / 'models'}", f"output.dir={tmp_path / 'run'}"),
    )
    assert done.status == 0, done.err
    table = pq.read_table(tmp_path / "run/embeddings")
    assert table.num_rows == 6 * 3  # two seconds, windows of one, a hop of a half
    assert np.stack(table["embedding"].to_numpy()).shape == (18, 8)
    np.testing.assert_allclose(np.stack(table["scores"].to_numpy()).sum(axis=1), 1, atol=1e-5)
    metadata = table.schema.metadata
    assert metadata[b"vggish_runner.model"] == b"loudness"
    assert metadata[b"vggish_runner.sample_rate"] == b"24000"
    clips = pq.read_table(tmp_path / "run/clips.parquet")
    assert set(clips["top_classes"].to_pylist()[0]) == {"quiet", "loud"}


def test_its_name_is_an_option_and_its_front_end_is_shown(site: Path) -> None:
    done = run_with(site, "dataset=demo", "model=loudness", "--cfg", "job", "--resolve")
    assert done.status == 0, done.err
    assert "hop_s: 0.5" in done.out
    assert "window_s: 1.0" in done.out
    unknown = run_with(site, "dataset=demo", "model=loud")
    assert "model=loud is not an option: use one of loudness, savedmodel, vggish, yamnet" in unknown.err


def test_one_that_cannot_be_imported_is_a_sentence(tmp_path: Path) -> None:
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vggish_runner.models]\nbroken = broken_model:Broken\n")
    assert run_with(tmp_path, "dataset=demo", "--cfg", "job").status == 0
    done = run_with(tmp_path, "dataset=demo", "model=broken")
    assert done.status != 0
    assert "model=broken (broken_model:Broken) can't be imported: ModuleNotFoundError" in done.err

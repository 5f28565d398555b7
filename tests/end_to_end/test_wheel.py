"""The built wheel, installed into a new environment, works from any folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import PROJECT, environment
from tests.end_to_end.test_runs import runs_of


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's Python with the wheel in it; what the wheel needs comes from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(PROJECT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    # A path file in a path file is not read, so this checkout's editable install stays out.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "runner", *arguments]
    return subprocess.run(
        command, cwd="/", env=environment(PYTHONPATH="", **env), capture_output=True, text=True, check=False
    )


def test_the_package_is_the_installed_one(installed: Path) -> None:
    code = "import runner; print(runner.__file__)"
    found = subprocess.run(
        [installed, "-c", code], cwd="/", env=environment(PYTHONPATH=""), capture_output=True, text=True, check=True
    ).stdout
    assert str(installed.parent.parent) in found


def test_help_and_configuration_from_the_root_folder(installed: Path) -> None:
    shown = run(installed, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "conservative" in shown.stdout
    config = run(installed, "--cfg", "job", "memory=greedy")
    assert config.returncode == 0, config.stderr
    assert "gpu_memory_fraction: 0.95" in config.stdout


def test_installed_weights_go_to_the_cache_and_runs_to_the_working_folder(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, "--cfg", "job", "--resolve", XDG_CACHE_HOME=str(tmp_path))
    assert f"models: {tmp_path}/vggish-runner/models" in shown.stdout
    assert "outputs: /outputs" in shown.stdout


def test_the_installed_runner_embeds(installed: Path, few_clips: Path, models: Path, outputs: Path) -> None:
    """With TensorFlow, MLflow and all, each of them imported by a fresh process."""
    settings = ("weights=random", "weights.seed=7", f"paths.models={models}", f"paths.outputs={outputs}")
    done = run(installed, f"dataset.root={few_clips}", *settings)
    assert done.returncode == 0, done.stderr
    assert "RANDOM WEIGHTS" in done.stderr
    assert "6 of 6 embedded" in done.stdout
    (picture,) = outputs.glob("runs/*/*/plots/embeddings.html")  # from a template of the package
    embeddings = pq.read_table(picture.parents[1] / "embeddings")
    assert embeddings.num_rows == 12
    assert len(embeddings.schema.metadata[b"vggish_runner.weights.checksum"]) == 64
    (logged,) = runs_of(outputs)
    assert (logged.info.status, logged.data.params["actual.precision"]) == ("FINISHED", "float32")
    assert logged.data.metrics["startup_import_s"] > 0

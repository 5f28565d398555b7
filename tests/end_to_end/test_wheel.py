"""The built wheel, installed into a new environment, works from any folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import PROJECT, environment


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


def test_the_installed_runner_embeds(installed: Path, few_clips: Path, tmp_path: Path) -> None:
    settings = ("weights=random", "tracking=none", "device=cpu", f"paths.outputs={tmp_path}/outputs")
    done = run(installed, f"dataset.root={few_clips}", *settings)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 embedded" in done.stdout
    assert len(list(tmp_path.glob("outputs/runs/*/*/plots/embeddings.html"))) == 1  # from a template of the package

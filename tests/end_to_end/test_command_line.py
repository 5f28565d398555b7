"""The command line without a run: help, configuration, and errors in one message."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli.run import COMMANDS
from tests.commands import PROJECT, environment, run


def test_help_is_for_a_person_and_imports_nothing_heavy() -> None:
    done = run("--help")
    assert done.status == 0
    assert "schema" not in done.out
    for group in ("device", "memory", "precision", "weights", "dataset", "parity", "tracking", "experiment"):
        assert f"\n  {group}\n" in done.out
    for option in ("auto", "metal", "conservative", "greedy", "bfloat16", "audioset", "manifest", "device_sweep"):
        assert option in done.out
    assert done.out.split("Examples")[1].split("Also")[0].count("python -m runner") == 6


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_slow(command: str) -> None:
    code = (
        "import atexit, sys; from runner.cli.run import main; "
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main(sys.argv[1:])"
    )
    words = [*command.split(), "--help"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("vggish-runner embeds" if not command else "usage:")
    slow = {"hydra", "numpy", "tensorflow", "mlflow", "pyarrow", "rich", "matplotlib", "fsspec", "psutil"}
    assert not set(done.stderr.split()) & slow


def test_help_names_every_option_of_every_group() -> None:
    out = run("--help").out
    for path in (PROJECT / "conf").glob("*/*.yaml"):
        if path.parent.name != "hydra":
            assert f" {path.stem} " in out, path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset.root=s3://me:word@bucket/clips"], ["dataset.root", "credentials come from the driver"]),
        (["output.dir=s3://me:word@bucket/x", "engine=ray"], ["output.dir", "credentials come from the driver"]),
        (["device=quux"], ["device=quux", "auto, cpu, gpu, metal"]),
        (["nosuch=1"], ["nosuch"]),
        (["memory.nosuch=1"], ["memory.nosuch", "not in"]),
        (["memory.batch_size=abc"], ["memory.batch_size", "abc"]),
        (["parity.tolerances=${oc.env:HOME}"], ["parity.tolerances", "is not a table"]),
        (["memory.batch_size=${oc.env:HOME}"], ["memory.batch_size", "whole number"]),
        (["frontend.hop_s=${oc.env:HOME}"], ["frontend.hop_s", "converted to Float"]),
        (["device=0"], ["group", "--help"]),
        (["weights=[]"], ["weights has no option"]),
        (["dataset.max_skipped=1e400"], ["dataset.max_skipped=inf", "finite"]),
        (["dataset.max_skipped=1.5"], ["dataset.max_skipped=1.5"]),
        (["memory.batch_size=0"], ["memory.batch_size=0", "whole number from 1", "auto"]),
        (["memory.gpu_memory_fraction=1.5"], ["gpu_memory_fraction=1.5"]),
        (["weights=random", "weights.path=/x"], ["weights.path"]),
        (["weights=file"], ["weights.path"]),
        (["dataset.root=/no/such/folder"], ["/no/such/folder", "does not exist"]),
        (["dataset=manifest"], ["dataset.path"]),
        (["precision.name=float7"], ["float7", "bfloat16"]),
        (["frontend.hop_s=0.123"], ["frontend.hop_s"]),
        (["-m", "device=cpu,quux"], ["quux"]),
        (["-m", "memory.batch_size=16,0"], ["memory.batch_size=0"]),
        (["no equals"], ["no equals"]),
    ],
)
def test_bad_configuration_is_one_short_message(arguments: list[str], words: list[str], tmp_path) -> None:
    done = run(*arguments, f"paths.outputs={tmp_path}/out")
    assert done.status == 1
    assert "Traceback" not in done.err + done.out
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.err.startswith("error: ")
    for word in words:
        assert word in done.err
    assert not (tmp_path / "out").exists()  # nothing was made before the check


def test_the_configuration_can_be_shown() -> None:
    shown = run("--cfg", "job", "--resolve", "device=metal", "memory=greedy")
    assert shown.status == 0
    assert "name: metal" in shown.out
    assert "gpu_memory_fraction: 0.95" in shown.out
    tree = run("--info", "defaults-tree")
    assert tree.status == 0
    assert "memory: balanced" in tree.out or "memory/balanced" in tree.out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vggish-runner device=", ["device=auto", "device=cpu", "device=gpu", "device=metal"]),
        ("vggish-runner memory=gr", ["memory=greedy"]),
        ("vggish-runner memory.batch", ["memory.batch_size="]),
        ("vggish-runner ", ["device=", "memory=", "dataset."]),
    ],
)
def test_shell_completion(line: str, expected: list[str]) -> None:
    done = run("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.status == 0, done.err
    assert set(expected) <= set(done.out.split())
    assert "schema" not in done.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_the_installed_command() -> None:
    script = """
        eval "$(vggish-runner -sc install=bash)"
        COMP_LINE="vggish-runner memory=" COMP_CWORD=1
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment(PATH=path), check=False
    )
    assert done.stdout.split() == ["memory=balanced", "memory=conservative", "memory=greedy"], done.stderr

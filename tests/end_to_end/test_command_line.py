"""The command line without a run: help, configuration, and errors in one message."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli.run import COMMANDS
from runner.jobs.spec import Job
from tests.commands import PROJECT, environment, run
from tests.config.test_arguments import jobs, outcome

__all__ = ["jobs"]


def test_help_is_for_a_person_and_imports_nothing_heavy() -> None:
    done = run("--help")
    assert done.status == 0
    assert "schema" not in done.out
    for group in ("device", "memory", "precision", "weights", "dataset", "parity", "tracking", "experiment"):
        assert f"\n  {group}\n" in done.out
    for option in ("auto", "metal", "conservative", "greedy", "bfloat16", "audioset", "manifest", "device_sweep"):
        assert option in done.out
    assert done.out.split("Examples")[1].split("Also")[0].count("python -m runner") == 6


HELPS = """
import contextlib, io, json, sys
from runner.cli.run import main
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    print(json.dumps([command, said.getvalue(), list(sys.modules)]))
"""


def test_help_of_no_command_loads_anything_slow() -> None:
    commands = ["", *COMMANDS]
    process = [sys.executable, "-c", HELPS, json.dumps(commands)]
    done = subprocess.run(process, cwd=PROJECT, capture_output=True, text=True, check=True)
    slow = {"hydra", "numpy", "tensorflow", "mlflow", "pyarrow", "rich", "matplotlib", "fsspec", "psutil"}
    helps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [command for command, _, _ in helps] == commands
    for command, said, modules in helps:
        assert said.startswith("usage:" if command else "vggish-runner embeds"), command
        assert slow.isdisjoint(modules), command


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
        (["dataset=manifest"], ["dataset.path"]),
        (["precision.name=float7"], ["float7", "bfloat16"]),
        (["frontend.hop_s=0.123"], ["frontend.hop_s"]),
        (["-m", "device=cpu,quux"], ["quux"]),
        (["-m", "memory.batch_size=16,0"], ["memory.batch_size=0"]),
        (["no equals"], ["no equals"]),
    ],
)
def test_bad_configuration_is_one_short_message(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: list[Job]
) -> None:
    status, said = outcome(shlex.join(arguments), tmp_path / "out", capsys)
    assert status == 1
    assert len(said.splitlines()) == 1, said
    assert said.startswith("error: ")
    for word in words:
        assert word in said
    assert not (tmp_path / "out").exists()  # nothing was made before the check
    assert jobs == []


def test_data_that_is_not_there_is_one_short_message_of_the_command(tmp_path: Path) -> None:
    done = run("dataset.root=/no/such/folder", f"paths.outputs={tmp_path}/out")
    assert (done.status, len(done.err.splitlines())) == (1, 1)
    assert done.err.startswith("error: ")
    assert "/no/such/folder" in done.err
    assert "does not exist" in done.err
    assert not (tmp_path / "out").exists()


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

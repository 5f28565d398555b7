"""The documentation is true: its Python runs, its commands compose, its links lead somewhere, its metrics are all."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from runner.cli.run import COMMANDS
from runner.config.composition import compose_config
from runner.core.metrics import metric_of
from runner.inference.session import VGGishSession
from runner.profiling.passes import trace
from tests.commands import PROJECT, environment, run

DOCS = (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    found = []
    for path in DOCS:
        for block in [*blocks(path, "sh"), *blocks(path, "")]:
            found += [line.partition("   ")[0] for line in block.splitlines() if line.startswith("python -m runner ")]
    return sorted(set(found))


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_documentation_composes(command: str, tmp_path: Path) -> None:
    words = shlex.split(command.replace("/data/clips", str(tmp_path)))[3:]
    if words[:1] and words[0] in COMMANDS:
        return  # a sub-command's options are its parser's
    several = [word for word in words if "," in word and "[" not in word]
    single = [word.partition(",")[0] if word in several else word for word in words if word != "-m"]
    config = compose_config(["hydra.mode=RUN" if word.startswith("hydra.mode") else word for word in single])
    assert config.engine.name in ("local", "ray")


def test_the_rayjob_is_yaml_and_its_entrypoint_composes() -> None:
    job = yaml.safe_load((PROJECT / "docs" / "rayjob.yaml").read_text(encoding="utf-8"))["spec"]
    words = shlex.split(job["entrypoint"])
    assert words[:3] == ["python", "-m", "runner"]
    engine = compose_config(words[3:]).engine
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, engine.max_size)
    assert (float(limits["cpu"]), float(limits["nvidia.com/gpu"])) == (engine.num_cpus_per_actor, 1)


def test_a_job_of_slurm_has_time_for_the_shards_under_way_before_its_limit() -> None:
    launcher = yaml.safe_load((PROJECT / "conf" / "experiment" / "slurm.yaml").read_text())["hydra"]["launcher"]
    engine = compose_config(["experiment=slurm", "hydra.mode=RUN", "dataset=demo", "weights=random"]).engine
    assert engine.shutdown_timeout_s < launcher["signal_delay_s"]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_every_invariant_of_the_contract_has_tests_that_are_there() -> None:
    text = (PROJECT / "docs" / "contract.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (I\d+) \|.*\| (.+) \|$", text, re.MULTILINE)
    assert [name for name, _ in lines] == [f"I{number}" for number in range(1, len(lines) + 1)]
    for name, tests in lines:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named, name
        for file, test in named:
            assert re.search(rf"^def {test}\(", (PROJECT / file).read_text(encoding="utf-8"), re.MULTILINE), test


@pytest.mark.slow
def test_the_notebooks_examples_run_in_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = tmp_path / "clips"
    clips.mkdir()
    soundfile.write(tmp_path / "dog.wav", rng.normal(0, 0.1, 48_000), 16_000)
    for name in ("a", "b"):
        soundfile.write(clips / f"{name}.wav", rng.normal(0, 0.1, 32_000), 16_000)
    outputs = tmp_path / "outputs"
    done = run(f"dataset.root={clips}", "weights=random", f"paths.outputs={outputs}", f"output.dir={outputs}/my-run")
    assert done.status == 0, done.err
    code = "\n".join(blocks(PROJECT / "docs" / "python.md", "python"))
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(PROJECT), TF_CPP_MIN_LOG_LEVEL="3"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "(3, 128) (5, 128)" in ran.stdout
    assert "✓ cpu" in ran.stdout
    assert "(4, 128) 2 " in ran.stdout


@pytest.mark.slow
def test_every_metric_of_a_full_run_is_defined(few_clips: Path, outputs: Path) -> None:
    short = ["profile=full", "profile.repeat_s=0.1", "profile.min_batches=1", "profile.trace=false"]
    short += ["profile.device_benchmark_s={cpu:0.1,gpu:0.1,metal:0.1}", "device=cpu", "memory=conservative"]
    done = run("weights=random", f"dataset.root={few_clips}", *short, f"paths.outputs={outputs}")
    assert done.status == 0, done.err
    result = done.result
    assert result["warnings"] == []
    assert [name for name in result["metrics"] if metric_of(name) is None] == []
    # What full is for:
    assert result["metrics"]["repeats"] >= 5
    assert len(result["repeats"]["passes"]) == result["metrics"]["repeats"]
    assert result["metrics"]["model_only_examples_per_s"] > 0
    sizes = [step["batch_size"] for step in result["batch_size_curve"]["steps"]]
    assert sizes[:2] == [1, 4]
    pictures = {path.name for path in (done.run_dir / "plots").iterdir()}
    assert pictures == {"throughput.png", "stages.png", "memory.png", "batch_size.png", "projection.png",
                        "embeddings.html", "log_mel"}  # fmt: skip
    assert "passes" in done.out
    assert "advice" in done.out


@pytest.mark.slow
def test_a_trace_is_a_profile_of_tensorflows(vggish: VGGishSession, tmp_path: Path) -> None:
    trace(vggish, tmp_path / "trace", "int16")
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))

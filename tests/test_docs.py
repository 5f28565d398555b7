"""The documentation is true: its Python runs, its commands compose, its links, keys, paths and reasons exist."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from runner.audio.reader import REASONS
from runner.cli.run import COMMANDS, main
from runner.config.composition import compose_config
from runner.config.schema import GROUPS, schemas
from runner.contract.result import RunInfo, RunResult, RunStats, Startup
from runner.core.metrics import metric_of
from runner.inference.session import EmbeddingSession
from runner.output.parquet import embedding_schema
from runner.output.rows import CLIP_SCHEMA
from runner.output.state.rerun import TRANSIENT_REASONS
from runner.profiling.passes import trace
from runner.vggish.spec import VGGISH
from tests.commands import PROJECT, run
from tests.configs import make_config

DOCS = (PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md")))
NOTEBOOK = PROJECT / "docs" / "notebooks" / "folder-to-answers.ipynb"
OUTPUT_FILES = PROJECT / "docs" / "reference" / "output-files.md"


def blocks(path: Path, *languages: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for language, block in fenced if language in languages]


def joined(block: str) -> str:
    """The block with each command that goes on behind a backslash on one line."""
    return re.sub(r" *\\\n *", " ", block)


def commands() -> list[str]:
    lines = [line for path in DOCS for block in blocks(path, "sh", "") for line in joined(block).splitlines()]
    typed = (line.removeprefix("$ ").partition("   ")[0] for line in lines)
    commands = (command.replace("vggish-runner ", "python -m runner ", 1) for command in typed)
    return sorted({command for command in commands if command.startswith("python -m runner ")})


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def first_cells(path: Path, heading: str) -> list[str]:
    """Return the code in the first cells of the first table below a heading."""
    table = re.search(rf"^[#*]+ ?{re.escape(heading)}.*?\n\n(\|.*?)\n\n", path.read_text(encoding="utf-8"), re.M | re.S)
    assert table, heading
    return [name for row in table[1].splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 40


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_documentation_composes(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command.replace("/data/clips", str(tmp_path)))[3:]
    (tmp_path / "clips.csv").write_text("path\n")
    if words[:1] and words[0] in COMMANDS:
        with contextlib.suppress(SystemExit):
            main([*(word for word in words[:2] if not word.startswith("-")), "--help"])
        known = capsys.readouterr().out
        assert [word for word in words if word.startswith("--") and word not in known] == []
        return
    several = [word for word in words if "," in word and "[" not in word]
    single = [word.partition(",")[0] if word in several else word for word in words if word != "-m"]
    single = ["hydra.mode=RUN" if word.startswith("hydra.mode") else word for word in single]
    compose = compose_config if any(word.startswith("hydra") for word in single) else make_config
    assert compose(single).engine.name in ("local", "ray")


KEYS = {f"{name.partition('_')[0]}.{field.name}" for name, schema in schemas().items() for field in fields(schema)}

NOT_KEYS = {
    *("device.requested", "device.effective", "device.fallback_reason", "device.considered"),
    *("precision.requested", "parity.measured_by"),
    "frontend.gain_db",
    "tracking.json",
}
"""Tags, parameters and a file, whose names look like keys, and the example of CONTRIBUTING.md."""


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_the_keys_modules_and_commands_that_a_page_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    keys = set(re.findall(rf"[`\s']((?:{'|'.join(GROUPS)})\.[a-z]\w*)[`=]", text))
    assert keys - KEYS - NOT_KEYS == set()
    files = re.findall(r"`((?:runner|tests|benchmarks|conf)/[\w./]*)", text)
    assert [file for file in files if not (PROJECT / file).exists()] == []
    modules = re.findall(r"python -m ((?:runner|tests|benchmarks)\.[\w.]+)", text)
    assert [module for module in modules if not (PROJECT / f"{module.replace('.', '/')}.py").exists()] == []
    targets = re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make (\w+)`", text)) - set(targets) == set()


def test_the_tables_of_columns_keys_and_reasons_are_complete() -> None:
    assert first_cells(OUTPUT_FILES, "Parquet.") == [
        *embedding_schema(VGGISH.outputs).names,
        "embedding_pca",
        "embedding_u8",
    ]
    assert first_cells(OUTPUT_FILES, "clips.parquet") == CLIP_SCHEMA.names
    in_result = {field.name for kind in (RunInfo, RunResult, RunStats, Startup) for field in fields(kind)}
    not_in_file = {"info", "startup", "stats", "mlflow_run_id", "fad"}
    assert set(first_cells(OUTPUT_FILES, "result.json")) == in_result - not_in_file | {"schema_version"}
    assert set(first_cells(OUTPUT_FILES, "Skip reasons")) == set(REASONS)
    rows = re.findall(r"^\| `(\w+)` \|.*retried.* \|$", OUTPUT_FILES.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) == set(TRANSIENT_REASONS)


def test_the_rayjob_is_yaml_and_its_entrypoint_composes() -> None:
    job = yaml.safe_load((PROJECT / "docs" / "guides" / "rayjob.yaml").read_text(encoding="utf-8"))["spec"]
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
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if not target.startswith("http"):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_every_invariant_has_tests_that_exist() -> None:
    text = (PROJECT / "docs" / "explanation" / "invariants.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (I\d+) \|.*\| (.+) \|$", text, re.MULTILINE)
    assert [name for name, _ in lines] == [f"I{number}" for number in range(1, len(lines) + 1)]
    for name, tests in lines:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named, name
        for file, test in named:
            assert re.search(rf"^def {test}\(", (PROJECT / file).read_text(encoding="utf-8"), re.MULTILINE), test


@pytest.mark.slow
@pytest.mark.usefixtures("placeable")
def test_the_notebooks_examples_run_in_their_order(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    folder = outputs.parent
    clips = folder / "clips"
    clips.mkdir()
    soundfile.write(folder / "dog.wav", rng.normal(0, 0.1, 48_000), 16_000)
    for name in ("a", "b"):
        soundfile.write(clips / f"{name}.wav", rng.normal(0, 0.1, 32_000), 16_000)
    settings = ("weights=random", "profile=off", f"paths.outputs={outputs}", f"output.dir={outputs}/my-run")
    done = run(f"dataset.root={clips}", *settings)
    assert done.status == 0, done.err
    monkeypatch.chdir(folder)
    exec("\n".join(blocks(PROJECT / "docs" / "guides" / "notebooks.md", "python")), {})
    said = capsys.readouterr().out
    assert "(3, 128) (5, 128)" in said
    assert "✓ cpu" in said
    assert "(4, 128) 2 " in said


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are the real ones, with the double's worker; pictures must be there."""
    monkeypatch.chdir(tmp_path)
    display = ModuleType("IPython.display")
    display.Image = lambda name: Path(name).read_bytes()
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines()
        exec("\n".join(line for line in lines if not line.startswith("!")), names)
        for line in lines:
            if line.startswith("!"):
                words = shlex.split(re.split(r" 2>| \|", line)[0].format(**names).removeprefix("!python -m runner "))
                done = run(*words, *(["device=cpu"] if "=" in words[0] else []), cwd=tmp_path)
                assert done.status == 0, done.err
    assert "search" in words
    assert "chord" in done.out


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
def test_a_trace_is_a_profile_of_tensorflows(vggish: EmbeddingSession, tmp_path: Path) -> None:
    trace(vggish, tmp_path / "trace", "int16")
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))

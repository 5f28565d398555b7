"""Command lines that can't be carried out, and commands that we print: what a person reads and types."""

from __future__ import annotations

import copy
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from runner.cli.run import main
from runner.config.arguments import check_overrides
from runner.config.command_line import command_line
from runner.config.composition import compose_config
from runner.config.quoting import hydra_value, shell_override
from runner.config.run_loader import RunLoader
from runner.config.schema import from_dict
from runner.contract.result import RunResult
from runner.core.errors import ConfigError
from runner.jobs.spawn import STANDBY
from runner.jobs.spec import Job
from tests.commands import run
from tests.results import make_result

SECRET = "planted-s3cret"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that command lines come to, none of which is carried out."""
    found: list[Job] = []

    done = make_result({"status": "finished"})  # composed before Hydra composes the command line

    def note(job: Job) -> RunResult:
        found.append(job)
        return done

    monkeypatch.setattr("runner.jobs.job.run_job", note)
    monkeypatch.setattr(STANDBY, "start", lambda: None)  # no job needs a worker
    for name in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    return found


def outcome(line: str, outputs: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status of a command line, and all that it says."""
    words = [*shlex.split(line), f"paths.outputs={outputs}"]
    try:
        status, said = main(words), ""
    except SystemExit as ended:  # as the interpreter ends: a text is printed, and the status is 1
        status, said = (ended.code, "") if isinstance(ended.code, int) else (1, f"{ended.code}\n")
    captured = capsys.readouterr()
    return int(status or 0), captured.out + captured.err + said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        # options
        ("-m --cfg job", "--cfg and --multirun exclude one another"),
        ("--run -m", "exclude one another"),
        ("--resolve", "add --cfg job"),
        ("-p dataset", "add --cfg job"),
        ("--experimental-rerun x", "repeat the command instead"),
        ("-sc query", "-sc install=bash"),
        ("-sc install=csh", "bash, zsh, fish"),
        ("--foo", "unrecognized arguments: --foo"),
        ("--info nosuch", "'defaults-tree'"),
        ("--config-dir /no/such", "/no/such"),
        ("--config-name nosuch", "nosuch"),
        # what Hydra can't read
        ("foo", "foo is not of the form key=value"),
        ("/", "dataset.root=/"),
        ("'device =cpu'", "does not begin with a key"),
        ("dataset.root=~/clips", """give 'dataset.root="~/clips"'"""),
        ("'dataset.root=/a (2019)'", """give 'dataset.root="/a (2019)"'"""),
        ('"dataset.root=it\'s"', """give 'dataset.root="it'"'"'s"'"""),
        ("~engine[a,b]", "is not of the form key=value"),
        ("'dataset.root=\"~nobody-here/x\"'", "the home folder of an unknown user"),
        ("'output.dir=\"~nobody-here/x\"'", "the home folder of an unknown user"),
        ("dataset.root=x=y", """give 'dataset.root="x=y"'"""),
        ("dataset.root=[x", """give 'dataset.root="[x"'"""),
        ("dataset.root=[2019]", """give 'dataset.root="[2019]"'"""),
        ("dataset.root=Müsik", """give 'dataset.root="Müsik"'"""),
        ("output.dir=2019_01", """give 'output.dir="2019_01"'"""),
        ("+output.dir=1e3", """give '+output.dir="1e3"'"""),
        ("dataset.root=a,b", """for one value with a comma, give 'dataset.root="a,b"'"""),
        ("dataset.extensions=wav,flac", "give 'dataset.extensions=[wav,flac]'"),
        ("output.formats=npz", "give 'output.formats=[npz]'"),
        ("memory.batch_size=16,32", "for a sweep over them, add -m"),
        # unset variables of a script
        ("dataset.root=", "dataset.root is empty"),
        ("output.dir=''", "output.dir is empty"),
        ("hydra.run.dir=", "hydra.run.dir is empty"),
        # keys and options that there are not
        ("+foo=bar", "foo is not a key of the configuration: use one of device"),
        ("++memory.foo=1", "memory.foo is not a key of the configuration: memory has name"),
        ("+dataset.foo=1", "dataset.foo is not a key"),
        ("+memory.default_batch_size.tpu=1", "use one of cpu, gpu, metal"),
        ("+parity.tolerances.float32.foo=1", "parity.tolerances.float32.foo is not a key"),
        ("experiment=device_swep", "use one of batch_sweep, device_sweep, memory_sweep"),
        ("-m experiment=nosuch", "use one of batch_sweep"),
        ("hydra/launcher=nosuch", "use one of basic"),
        ("-m 'memory=glob(x*)'", "the sweep has no jobs"),
        ("dataset.fetch_ahead=4", "dataset.fetch_ahead has another name now: use dataset.prefetch"),
        ("+memory.batch_size_by_device.cpu=4", "use memory.default_batch_size"),
        ("weights.kind=random", "weights.kind has another name now: use weights=OPTION"),
        ("dataset=parquet dataset.name=id", "use dataset.name_column for a Parquet column"),
        ("parity=gate", "parity=gate has another name now: use parity=strict"),
        (
            "output=csv",
            "output=csv is not an option: set a key, as output.KEY=VALUE with one of formats, postprocess, ",
        ),
        ("output=npz", "use output.formats=[npz]"),
        ("output=tfrecord", "use output.formats=[tfrecord] output.postprocess=audioset"),
        ("frontend.resampler=reference", "use frontend.resampler=kaiser_best"),
        # numbers
        ("frontend.hop_s=nan", "frontend.hop_s=nan is not a finite number"),
        ("weights.timeout_s=inf", "weights.timeout_s=inf is not"),
        ("engine.shutdown_timeout_s=nan", "engine.shutdown_timeout_s=nan is not"),
        ("profile.device_benchmark_s.cpu=nan", "profile.device_benchmark_s.cpu=nan is not"),
        ("parity.tolerances.float32.rel_err=nan", "parity.tolerances.float32.rel_err=nan is not"),
        ("parity.tolerances.float32.rel_err=-1", "rel_err=-1.0 is not a tolerance"),
        ("memory.queue_depth=99999999999999999999", "is not a finite number that can be used"),
        ("-m profile.repeat_s=1,inf", "profile.repeat_s=inf is not"),
        ("memory.queue_depth=1.5", "memory.queue_depth"),
        # tracking, and credentials anywhere
        ("tracking=server", "needs an address"),
        ("tracking=server tracking.uri=host:5000", "give tracking.uri=http://host:5000"),
        (f"tracking.uri=http://me:{SECRET}@host", "MLFLOW_TRACKING_PASSWORD"),
        (f"\"tracking.uri='http://host?token={SECRET}'\"", "MLFLOW_TRACKING_URI"),
        (f"-m weights.base_url=http://me:{SECRET}@a/,http://me:{SECRET}@b/", "~/.netrc"),
        (f"+hydra.job.env_set.AWS_SECRET_ACCESS_KEY={SECRET}", "export it in the shell"),
        # two jobs in one folder
        ("-m device=auto,cpu hydra.sweep.subdir=same", "the folder of both job 0 and job 1"),
    ],
)
def test_a_bad_command_line_is_one_sentence(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: list[Job]
) -> None:
    status, said = outcome(line, tmp_path / "out", capsys)
    assert status == 1
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1, said
    assert words in said
    assert SECRET not in said
    assert not (tmp_path / "out").exists()
    assert jobs == []


def test_a_value_from_a_file_is_checked_as_one_that_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: list[Job]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        f"# @package _global_\ntracking:\n  uri: http://me:{SECRET}@host\n", encoding="utf-8"
    )
    status, said = outcome(f"--config-dir {tmp_path} experiment=mine", tmp_path / "out", capsys)
    assert (status, len(said.splitlines())) == (1, 1)
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert SECRET not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profile: {curve: true}", "profile.curve has another name now: use profile.batch_size_curve"),
        ("output: {dir: '${runner_models:}'}", "${runner_models:} has another name now: use ${runner.models_dir:}"),
    ],
)
def test_a_name_of_an_earlier_version_in_a_file_is_refused_with_its_new_one(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: list[Job]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n", encoding="utf-8")
    status, said = outcome(f"--config-dir {tmp_path} experiment=mine", tmp_path / "out", capsys)
    assert (status, said) == (1, f"error: {message}\n")


def test_every_number_of_the_configuration_must_be_finite() -> None:
    composed = asdict(compose_config([]))
    for path, value in _leaves(composed):
        if isinstance(value, float):
            *groups, key = path
            values = copy.deepcopy(composed)
            reduce(getitem, groups, values)[key] = float("nan")
            with pytest.raises(ConfigError, match="finite"):
                from_dict(values)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("-m memory=glob(*,exclude=g*)", 2),
        ("memory=greedy -m device=auto,cpu hydra.sweep.subdir=${hydra:job.num}", 2),  # options may come after overrides
    ],
)
def test_sweeps_as_hydra_has_them(
    line: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: list[Job]
) -> None:
    words = [*line.split(), f"paths.outputs={tmp_path}/out", "tracking=none"]
    assert main(words) == 0, capsys.readouterr()
    assert len({job.run_dir for job in jobs}) == len(jobs) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "memory=greedy",
        "-m memory=greedy,balanced",
        "experiment=memory_sweep device=cpu hydra.sweeper.params.memory=greedy",
    ],
)
def test_what_is_composed_once_is_what_hydra_composes_twice(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Job]
) -> None:
    composed, compose = [], ConfigLoaderImpl._load_configuration_impl

    def noting(loader: ConfigLoaderImpl, *arguments: Any, **options: Any) -> DictConfig:
        composed.append(loader)
        return compose(loader, *arguments, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", noting)
    counts, files, configs = [], [], []
    for loader in (RunLoader, ConfigLoaderImpl):
        monkeypatch.setattr("hydra._internal.hydra.ConfigLoaderImpl", loader)
        words = [*line.split(), "weights=random", "tracking=none", f"paths.outputs={tmp_path}"]
        assert main([*words, f"output.dir={tmp_path}/out"]) == 0
        counts.append(len(composed))
        files.append({path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob(".hydra/*.yaml")})
        configs.append([job.config for job in jobs])
        composed.clear()
        jobs.clear()
        shutil.rmtree(tmp_path / "out")
    assert counts[0] == counts[1] - 1
    assert configs[0] == configs[1] != []
    assert files[0] == files[1] != {}


def test_a_job_that_changes_its_folder_finds_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Job]
) -> None:
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["hydra.job.chdir=true", "dataset.root=clips", "paths.outputs=out", "tracking=none"]) == 0
    assert [job.config.dataset.root for job in jobs] == ["clips"]
    assert jobs[0].run_dir.is_relative_to(tmp_path / "out")
    assert not (jobs[0].run_dir / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [False, True])
def test_a_failure_is_told_once_and_without_the_overrides(sweep: bool, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    many = ["-m", "memory=greedy,balanced"] if sweep else []
    done = run(*many, f"dataset.root={tmp_path}/none", f"paths.outputs={tmp_path}/out", "tracking=none")
    assert done.status == 1
    assert "Error executing job" not in done.err + done.out
    assert " ".join(done.err.split()).count("holds no clips") == (2 if sweep else 1)


def parsed(word: str) -> Any:
    """What the value of an override comes to in a configuration."""
    value = OverridesParser.create().parse_override(word).value()
    return OmegaConf.create({"value": value})["value"]


_TEXTS = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1)
_ODD = st.text(st.sampled_from("\\\"'${}()[],=:~ #!a1._-+"), min_size=1)


@settings(deadline=None)  # the machine may be busy
@given(text=_TEXTS | _ODD)
@example("~/clips")
@example("/data/(2019) it's")
@example("a\\")
@example('\\"')
@example("${x}")
@example("\\${x}\\")
@example("null")
@example("1_000")
@example(" a ")
@example("--config-dir=x")
def test_printed_values_come_back_as_they_were(text: str) -> None:
    assert parsed(f"dataset.root={hydra_value(text)}") == text
    assert shlex.split(shell_override("dataset.root", text)) == [f"dataset.root={hydra_value(text)}"]
    words = shlex.split(command_line([f"dataset.root={hydra_value(text)}"], output_dir=text))
    if "://" not in text:  # an address may have had credentials
        assert words[:3] == ["python", "-m", "runner"]
        assert [parsed(word) for word in words[3:]] == [text, text]


@settings(deadline=None)  # the machine may be busy
@given(texts=st.lists(_ODD, min_size=2, max_size=3, unique=True))
@example(["s3://a/b,c", "/data/(2019) it's"])
def test_the_command_of_a_sweeps_job_has_its_value(texts: list[str]) -> None:
    to_run_config = "dataset.root=" + ",".join(map(hydra_value, texts))
    split = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([to_run_config]), None)[0]
    found = [parsed(shlex.split(command_line(job))[3]) for job in split]
    assert found == texts


@settings(deadline=None)  # the machine may be busy
@given(text=_ODD)
def test_a_hint_is_what_can_be_typed(text: str) -> None:
    said = ""
    try:
        check_overrides([f"dataset.root={text}"])
    except ConfigError as error:
        said = str(error)
    if "is empty" not in said and said:
        (word,) = shlex.split(said.rpartition(" give ")[2])
        check_overrides([word])
        assert parsed(word) == text


def test_a_finished_run_is_repeated_into_a_new_folder() -> None:
    to_run_config = ["device=cpu", "output.dir=/data/run", "++output.dir=/data/run"]
    assert command_line(to_run_config) == "python -m runner device=cpu"
    assert command_line(to_run_config, output_dir="/data/my run") == (
        "python -m runner device=cpu 'output.dir=\"/data/my run\"'"
    )


@pytest.mark.slow
def test_the_folder_of_a_users_own_configuration_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Job]
) -> None:
    (tmp_path / "my conf/experiment").mkdir(parents=True)
    (tmp_path / "my conf/experiment/mine.yaml").write_text(
        "# @package _global_\nmemory:\n  queue_depth: 7\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      precision: float32,auto\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    more = [f"paths.outputs={tmp_path}/out", "tracking=none"]
    assert main(["--config-dir", "my conf", "experiment=mine", *more]) == 0
    assert [job.config.precision.name for job in jobs] == ["float32", "auto"]
    sweep = shlex.split(command_line(["--config-dir=" + str(tmp_path / "my conf"), "experiment=mine"], multirun=True))
    assert sweep == ["python", "-m", "runner", f"--config-dir={tmp_path}/my conf", "experiment=mine"]
    printed = shlex.split(command_line(jobs[1].overrides))
    assert f"--config-dir={tmp_path}/my conf" in printed
    monkeypatch.chdir("/")
    jobs.clear()
    assert main(printed[3:]) == 0  # one run, with the rest of the experiment
    assert [(job.config.precision.name, job.config.memory.queue_depth) for job in jobs] == [("auto", 7)]
    assert not jobs[0].in_sweep

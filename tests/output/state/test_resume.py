"""The plan of a run, made, taken up again and brought up to date; locks; what may differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.audio.reader import REASONS, read_clip
from runner.config.composition import compose_config
from runner.config.fingerprint import fingerprint
from runner.config.schema import FolderDataset, FrontendConfig, RunConfig
from runner.core.errors import ClipError, ConfigError, ResumeError
from runner.core.layout import RunLayout
from runner.dataset.changes import OLDER_LISTING
from runner.dataset.manifest import build_manifest, select_partition
from runner.engines.common import identity_of
from runner.jobs.sweep import check_sweep_folder
from runner.output.merge.folders import FolderSource
from runner.output.merge.merge import read_partition
from runner.output.state.identity import check_identity
from runner.output.state.journal import Journal, ShardCounts, ShardEntry, read_journal
from runner.output.state.locks import acquire_run_lock, release_run_lock
from runner.output.state.plan import Plan, make_plan
from runner.output.state.plan_file import check_output_folder, read_plan
from runner.output.state.rerun import TRANSIENT_REASONS, ObjectProbe, SkippedClip, shards_to_retry
from runner.output.verify import load_committed_shards
from runner.vggish.postprocess import Postprocessor, random_pca
from tests.configs import make_config
from tests.conftest import PROJECT
from tests.vggish_clips import PREPARATION


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    for number in range(10):
        (root / f"{number}.wav").write_bytes(bytes(number + 1))
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def config(data: Path, *overrides: str) -> RunConfig:
    return make_config([f"dataset.root={data}", "weights=random", "output.clips_per_shard=3", *overrides])


def plan(run: Path, data: Path) -> Plan:
    return make_plan(run, config(data), build_manifest(FolderDataset(root=str(data), extensions=["wav"]), run))


def finish(run: Path, *shards: int, rows: Sequence[str] | None = None, skipped: Sequence[str] = ()) -> None:
    """Note shards as done: of the plan's rows, or of these; ``skipped`` are the reasons of each one's first clips."""
    plan = json.loads((run / RunLayout.state / "plan.json").read_text())
    journal = Journal(run / RunLayout.journal)
    (run / RunLayout.clip_shards).mkdir(exist_ok=True)
    for number in shards:
        first, end = plan["shards"][number]
        reasons = [*skipped, *[None] * (end - first - len(skipped))]
        part = pa.table({"reason": pa.array(reasons, pa.string()), "detail": pa.nulls(end - first, pa.string())})
        pq.write_table(part, run / RunLayout.clip_shards / f"part-{number:05d}.parquet")
        counts = ShardCounts(skipped=dict.fromkeys(skipped, 1))
        journal.append(ShardEntry(number, counts=counts, row_digest=(rows or plan["row_digests"])[number]))
    journal.close()


def test_a_new_run_has_everything_to_do(run: Path, data: Path) -> None:
    made = plan(run, data)
    assert (made.shards, made.committed, made.is_resumed, made.notes) == (
        [(0, 3), (3, 6), (6, 9), (9, 10)],
        {},
        False,
        [],
    )
    assert not made.is_finished


def test_a_run_taken_up_keeps_what_is_done(run: Path, data: Path) -> None:
    plan(run, data)
    finish(run, 0, 2)
    again = plan(run, data)
    assert (set(again.committed), again.is_resumed, again.notes) == ({0, 2}, True, [])
    finish(run, 1, 3)
    assert plan(run, data).is_finished


def test_a_changed_file_has_its_shard_done_again_also_after_another_kill(run: Path, data: Path) -> None:
    plan(run, data)
    finish(run, 0, 1)
    os.utime(data / "4.wav", ns=(1, 1))
    again = plan(run, data)
    assert set(again.committed) == {0}
    assert again.notes == ["re-embedding 1 source file changed since the run started"]
    third = plan(run, data)  # the second session was killed before it did anything
    assert (set(third.committed), third.notes) == ({0}, [])


def test_new_files_come_after_the_others_and_vanished_ones_stay(run: Path, data: Path) -> None:
    before = plan(run, data).manifest
    finish(run, 0, 1, 2, 3)
    (data / "0.wav").unlink()
    (data / "00-new.wav").write_bytes(b"x")
    (data / "z.wav").write_bytes(b"x")
    again = plan(run, data)
    assert again.shards == [(0, 3), (3, 6), (6, 9), (9, 10), (10, 12)]
    assert set(again.committed) == {0, 1, 2, 3}
    names = again.manifest.table["clip"].to_pylist()
    assert names == [*before.table["clip"].to_pylist(), "00-new.wav", "z.wav"]
    assert len(again.notes) == 2
    assert again.manifest.digest != before.digest
    once_more = plan(run, data)
    assert (once_more.shards, once_more.manifest.digest) == (again.shards, again.manifest.digest)


def test_a_plan_half_written_counts_the_new_files_as_new_again(run: Path, data: Path) -> None:
    plan(run, data)
    old = (run / RunLayout.state / "plan.json").read_text()
    (data / "z.wav").write_bytes(b"x")
    made = plan(run, data)
    (run / RunLayout.state / "plan.json").write_text(old)  # killed between manifest and plan
    assert plan(run, data).shards == made.shards


@pytest.mark.parametrize(
    "free",
    [
        "device=gpu",
        "memory=greedy",
        "memory.decode_workers=7",
        "model.conv=direct",
        "tracking=none",
        "dataset.on_error=fail",
    ],
)
def test_what_changes_no_number_may_differ(run: Path, data: Path, free: str) -> None:
    plan(run, data)
    check_output_folder(run, config(data, free))
    assert fingerprint(config(data, free)) == fingerprint(config(data))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("precision=bfloat16", "precision.name"),
        ("weights.seed=1", "weights.seed"),
        ("frontend.hop_s=0.48", "frontend.hop_s"),
        ("dataset.recorded_at=none", "dataset.recorded_at"),
        ("output.pool=[4.8]", "output.pool"),
        ("dataset.pattern=a*", "dataset.pattern"),
        ("output.formats=[npz]", "output.formats"),
        ("output.clips_per_shard=4", "output.clips_per_shard"),
    ],
)
def test_what_changes_numbers_or_files_may_not(run: Path, data: Path, override: str, key: str) -> None:
    plan(run, data)
    with pytest.raises(ConfigError, match=f"another configuration: {key} "):
        check_output_folder(run, config(data, override))


def test_every_key_of_the_front_end_is_a_setting_that_may_not_differ(data: Path) -> None:
    assert {f"frontend.{field.name}" for field in fields(FrontendConfig)} <= fingerprint(config(data)).keys()


@pytest.mark.parametrize("key", ["frontend.preemphasis", "frontend.speed"])
def test_a_plan_with_other_keys_is_of_another_version(run: Path, data: Path, key: str) -> None:
    plan(run, data)
    path = run / RunLayout.plan
    values = json.loads(path.read_text())
    if key in values["settings"]:
        del values["settings"][key]
    else:
        values["settings"][key] = 0.97
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f"another version of the runner, which differs in the keys {key}:"):
        check_output_folder(run, config(data))
    with pytest.raises(ConfigError, match=r"another configuration: .*precision\.name"):
        check_output_folder(run, config(data, "precision=bfloat16"))


def test_a_plan_that_names_no_model_is_of_vggish(run: Path, data: Path) -> None:
    plan(run, data)
    path = run / RunLayout.plan
    values = json.loads(path.read_text())
    for key in ("model.name", "model.layer"):
        del values["settings"][key]
    path.write_text(json.dumps(values))
    check_output_folder(run, config(data))
    stored = read_plan(run)
    assert stored is not None
    assert (stored.settings["model.name"], stored.settings["model.layer"]) == ("vggish", "embedding")


def test_a_folder_of_something_else_is_refused(run: Path, data: Path) -> None:
    (run / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run"):
        check_output_folder(run, config(data))


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}', "\0"])
def test_a_plan_that_cannot_be_read_is_refused(run: Path, data: Path, text: str) -> None:
    plan(run, data)
    (run / RunLayout.state / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        check_output_folder(run, config(data))


def test_a_folder_takes_its_own_sweep_and_no_other(tmp_path: Path) -> None:
    (tmp_path / RunLayout.sweep).write_text(json.dumps({"overrides": ["precision=float32,bfloat16"]}))
    check_sweep_folder(tmp_path, ("precision=float32,bfloat16",), "there")
    with pytest.raises(ConfigError, match=r"output\.dir=there already holds another sweep"):
        check_sweep_folder(tmp_path, ("precision=float32,float16",), "there")


def test_a_folder_has_one_command_at_a_time_and_a_dead_ones_lock_is_free(run: Path) -> None:
    code = (
        f"from pathlib import Path; from runner.output.state.locks import acquire_run_lock; "
        f"acquire_run_lock(Path({str(run)!r}))"
    )
    code += "; print('got it', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "got it\n"
        with pytest.raises(ConfigError, match=rf"is locked by process {other.pid} on "):
            acquire_run_lock(run)
        other.kill()
        other.wait()
    acquire_run_lock(run)
    acquire_run_lock(run)  # this process has it
    release_run_lock(run)


def test_unreadable_lines_are_told(run: Path, data: Path) -> None:
    plan(run, data)
    finish(run, 0)
    with (run / RunLayout.journal).open("ab") as file:
        file.write(b'{"shard": 1, "cl')
    made = plan(run, data)
    assert set(made.committed) == {0}
    assert "truncated journal lines" in made.notes[0]
    finish(run, 1)
    assert set(read_journal(run / RunLayout.journal)[0]) == {0, 1}


def test_where_nothing_changed_the_plan_is_compared_in_pieces(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan(run, data)
    monkeypatch.setattr("runner.output.state.plan.reconcile", lambda *tables: pytest.fail("the whole was read"))
    again = plan(run, data)
    assert (again.shards, again.manifest.digest, again.notes) == (before.shards, before.manifest.digest, [])


def test_a_line_of_rows_as_they_were_is_not_believed_whenever_it_was_written(run: Path, data: Path) -> None:
    """The worker of a killed command goes on with the plan that it was given."""
    before = plan(run, data).row_digests
    os.utime(data / "4.wav", ns=(1, 1))
    assert plan(run, data).row_digests != before
    finish(run, 0, 1, rows=before)  # the orphan ends
    done = load_committed_shards(run, [], json.loads((run / RunLayout.state / "plan.json").read_text())["row_digests"])
    assert set(done) == {0}
    finish(run, 1, rows=before)  # another one, after the new worker
    again = plan(run, data)
    assert set(again.committed) == {0}
    assert again.notes == ["re-running 1 shards of older files or labels"]


@pytest.mark.parametrize(
    ("reason", "again"),
    [
        ("timeout", True),
        ("decoder_crashed", True),
        ("download_timeout", True),
        ("missing", True),
        ("unreadable", True),
        ("decode_error", False),
        ("too_long", False),
    ],
)
def test_clips_that_were_skipped_for_what_may_have_passed_are_tried_again(
    run: Path, data: Path, reason: str, again: bool
) -> None:
    plan(run, data)
    finish(run, 0, 2, 3)
    finish(run, 1, skipped=[reason])
    made = plan(run, data)
    assert set(made.committed) == ({0, 2, 3} if again else {0, 1, 2, 3})
    assert any("transient reasons" in note for note in made.notes) is again
    assert set(read_journal(run / RunLayout.journal)[0]) == set(made.committed)


@pytest.mark.parametrize("reason", ["missing", "unreadable"])
def test_a_finished_run_whose_files_are_gone_for_good_stays_finished(run: Path, data: Path, reason: str) -> None:
    plan(run, data)
    finish(run, 0, 2, 3)
    finish(run, 1, skipped=[reason])
    (data / "3.wav").rename(data.parent / "3.wav")
    assert plan(run, data).is_finished
    assert plan(run, data).is_finished
    (data.parent / "3.wav").rename(data / "3.wav")
    assert set(plan(run, data).committed) == {0, 2, 3}


def test_a_clip_whose_decoder_was_not_installed_is_tried_once_it_is(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (data / "noise.m4a").write_bytes(b"noise")
    with pytest.raises(ClipError) as caught:
        read_clip(data / "noise.m4a", preparation=PREPARATION)
    lost = SkippedClip(b"", caught.value.detail, True, ObjectProbe())
    assert not TRANSIENT_REASONS[caught.value.reason](lost)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert TRANSIENT_REASONS[caught.value.reason](lost)
    assert not TRANSIENT_REASONS[caught.value.reason](lost._replace(detail="Format not recognised."))


def test_every_reason_that_may_pass_is_one_of_a_clip() -> None:
    assert TRANSIENT_REASONS.keys() <= REASONS.keys()


class Rows:
    """A run of a manifest file, whose rows change."""

    def __init__(self, run: Path, data: Path) -> None:
        self.run, self.file = run, data / "clips.csv"

    def plan(self, *rows: str) -> Plan:
        self.file.write_text("\n".join(["path,start,end,label", *rows]))
        overrides = ["dataset=manifest", f"dataset.path={self.file}", "weights=random", "output.clips_per_shard=2"]
        made = compose_config(overrides)
        return make_plan(self.run, made, build_manifest(made.dataset, self.run))


def test_corrected_labels_have_their_shards_done_again(run: Path, data: Path) -> None:
    rows = Rows(run, data)
    rows.plan("0.wav,,,dog", "1.wav,,,", "2.wav,,,cat", "3.wav,,,cat")
    finish(run, 0, 1)
    again = rows.plan("0.wav,,,dog", "1.wav,,,", "2.wav,,,owl", "3.wav,,,")
    assert again.manifest.table["label"].to_pylist() == ["dog", None, "owl", None]
    assert (set(again.committed), again.notes) == (
        {0},
        ["re-running the shards of 2 labels changed since the run started"],
    )
    assert pq.read_table(run / RunLayout.state / "manifest.parquet").equals(again.manifest.table)


def test_a_manifest_file_in_another_order_and_spelling_with_new_rows_is_the_same_run(run: Path, data: Path) -> None:
    rows = Rows(run, data)
    rows.plan("0.wav,,,", "1.wav,0,1,", "1.wav,1,2,")
    finish(run, 0, 1)
    again = rows.plan("5.wav,,,", f"{data}/1.wav,1,2,", "./1.wav,0.0,1.0,", f"{data}//0.wav,,,")
    assert again.manifest.table["clip"].to_pylist() == ["0.wav", "1.wav#t=0,1", "1.wav#t=1,2", "5.wav"]
    assert set(again.committed) == {0, 1}


@pytest.mark.parametrize("now", [["0.wav,,,"], ["0.wav,,,", "1.wav,0,1.5,"], ["0.wav,,,", "2.wav,0,1,"]])
def test_a_manifest_file_that_lost_rows_is_refused(run: Path, data: Path, now: list[str]) -> None:
    rows = Rows(run, data)
    rows.plan("0.wav,,,", "1.wav,0,1,")
    with pytest.raises(ResumeError, match=r"clips\.csv no longer has 1 rows .*the first: 1\.wav#t=0,1\): restore them"):
        rows.plan(*now)
    assert rows.plan("0.wav,,,", "1.wav,0,1,").notes == []


def test_a_run_goes_on_only_with_the_pca_parameters_that_it_began_with(run: Path) -> None:
    (run / RunLayout.state).mkdir()
    session = SimpleNamespace(
        metadata=SimpleNamespace(weights=SimpleNamespace(checksum="w"), precision=SimpleNamespace(effective="float32"))
    )

    def identity(seed: int | None) -> dict[str, str]:
        postprocess = None if seed is None else Postprocessor("audioset", random_pca(seed))
        return identity_of(session, postprocess)  # type: ignore[arg-type]

    check_identity(run, identity(1))
    check_identity(run, identity(1))
    with pytest.raises(ResumeError, match=r"pca\.checksum \(.* then, .* now\)"):
        check_identity(run, identity(2))
    assert "pca.checksum" not in identity(None)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_manifest_is_written_anew_where_the_data_set_is_what_it_was(
    run: Path, data: Path, damage: Callable[[Path], object]
) -> None:
    before = plan(run, data)
    finish(run, 0, 1)
    damage(run / RunLayout.state / "manifest.parquet")
    again = plan(run, data)
    assert (set(again.committed), again.row_digests) == ({0, 1}, before.row_digests)
    assert pq.read_table(run / RunLayout.state / "manifest.parquet").equals(before.manifest.table)
    damage(run / RunLayout.state / "manifest.parquet")
    os.utime(data / "4.wav", ns=(1, 1))
    with pytest.raises(ResumeError, match=r"manifest\.parquet can't be read .*choose another output\.dir"):
        plan(run, data)


def test_a_merge_believes_no_line_of_rows_as_they_were(run: Path, data: Path) -> None:
    settings = config(data, "dataset.partition=1/2")
    whole = build_manifest(FolderDataset(root=str(data), extensions=["wav"]), run)
    made = make_plan(run, settings, select_partition(whole, 1, 2, 3))
    finish(run, 0, 1)
    assert set(read_partition(FolderSource(run)).committed) == {0, 1}
    finish(run, 1, rows=["older"] * len(made.row_digests))
    assert set(read_partition(FolderSource(run)).committed) == {0}


def test_a_part_goes_on_by_the_listing_that_it_began_with(run: Path, data: Path) -> None:
    settings = config(data, "dataset.partition=1/2")

    def part() -> Plan:
        whole = build_manifest(FolderDataset(root=str(data), extensions=["wav"]), run)
        return make_plan(run, settings, select_partition(whole, 1, 2, 3))

    before = part()
    finish(run, 0, 1)
    (data / "00.wav").write_bytes((data / "0.wav").read_bytes())
    again = part()
    assert (again.manifest.table, again.manifest.partition) == (before.manifest.table, before.manifest.partition)
    assert set(again.committed) == {0, 1}
    assert again.notes == [OLDER_LISTING]
    os.utime(data / "6.wav", ns=(1, 1))
    (data / "1.wav").unlink()
    changed = part()
    assert set(changed.committed) == {0}
    assert changed.manifest.partition == before.manifest.partition
    assert changed.manifest.table["clip"].equals(before.manifest.table["clip"])


def test_objects_that_were_forbidden_are_asked_for_others_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = 40
    (tmp_path / RunLayout.clip_shards).mkdir(parents=True)
    lost = pa.table({"reason": ["unreadable"] * clips, "detail": pa.nulls(clips, pa.string())})
    pq.write_table(lost, tmp_path / RunLayout.clip_shards / "part-00000.parquet")
    done = {0: ShardEntry(0, counts=ShardCounts(skipped={"unreadable": clips}))}
    paths = pa.chunked_array([[f"s3://bucket/{number}.wav".encode() for number in range(clips)]])
    asked: list[list[bytes]] = []
    monkeypatch.setattr(ObjectProbe, "exists", lambda self, path: asked[-1].append(path) or path == mended)
    there, mended = np.ones(clips, bool), b""
    for _ in range(2):
        asked.append([])
        assert shards_to_retry(tmp_path, done, [(0, clips)], paths, there) == []
    assert [len(each) for each in asked] == [16, 16]
    assert set(asked[0]) != set(asked[1])
    mended = b"s3://bucket/39.wav"
    tries = 0
    while not shards_to_retry(tmp_path, done, [(0, clips)], paths, there):
        tries += 1
        assert tries < 100, "it is found sooner or later"

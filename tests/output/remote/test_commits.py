"""Commit objects: shards that are lost, taken back or of changed sources have none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.contract.spec import RemoteHandle
from runner.core.errors import StoreError
from runner.core.files import FileDigest, digest_file
from runner.core.layout import RunLayout
from runner.core.span import Span
from runner.dataset.manifest import build_manifest
from runner.output.remote.committer import RemoteCommitter
from runner.output.remote.run import RemoteRun, open_remote_run
from runner.output.state.journal import Journal, ShardCounts, ShardEntry, read_journal
from runner.output.state.plan import Plan, make_plan
from runner.output.state.plan_file import begin_attempt
from runner.output.writer import ShardFiles, ShardWriter
from runner.storage.object_store import ObjectStore
from tests.configs import make_config
from tests.results import make_spec
from tests.storage.leases import make_memory_store, put_holder
from tests.stress.chaos import make_clips
from tests.writers import vggish_info


@pytest.fixture
def memory_store(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ObjectStore:
    return make_memory_store(monkeypatch, request.node.name)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("stores") / "data", 8)


def test_a_worker_that_lost_the_output_commits_no_more(memory_store: ObjectStore, tmp_path: Path) -> None:
    remote = RemoteHandle(memory_store.url, "ours", plan="", fenced=False)
    config = make_config(["weights=random"])
    committer = RemoteCommitter(
        make_spec(tmp_path, config, shards=(Span(0, 1),), row_digests=("of shard 0",), remote=remote)
    )
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings/part-00000.parquet").write_bytes(b"rows")
    entry = ShardEntry(0, 1, 1, {"embeddings/part-00000.parquet": FileDigest(4, "")})
    put_holder(memory_store, token="ours")
    committer.commit(entry)
    assert ".runner/commits/shard-00000.json" in memory_store.list_recursive(".runner")
    memory_store.remove(".runner/commits/shard-00000.json")
    put_holder(memory_store)
    with pytest.raises(StoreError, match="process 1 on far"):
        committer.commit(entry)
    assert ".runner/commits/shard-00000.json" not in memory_store.list_recursive(".runner")


def test_shards_that_are_taken_back_lose_their_commit_objects(memory_store: ObjectStore, tmp_path: Path) -> None:
    remote = RemoteHandle(memory_store.url, "ours", plan="", fenced=False)
    spec = make_spec(
        tmp_path, make_config(["weights=random"]), shards=(Span(0, 1),) * 3, row_digests=("",) * 3, remote=remote
    )
    (tmp_path / RunLayout.state).mkdir()
    put_holder(memory_store, token="ours")
    journal = Journal(tmp_path / RunLayout.journal)
    writer = ShardWriter(ShardFiles(tmp_path, vggish_info(), []), journal, uploader=RemoteCommitter(spec))
    for shard in range(2):
        writer.commit(ShardEntry(shard))
    writer.revoke_from(1)
    writer.commit(ShardEntry(2))  # it was under way
    assert list(writer.committed) == [0]
    assert list(memory_store.list_recursive(".runner/commits")) == [".runner/commits/shard-00000.json"]
    assert list(read_journal(tmp_path / RunLayout.journal)[0]) == [0]


def test_shards_of_changed_sources_lose_their_commit_objects(
    memory_store: ObjectStore, tmp_path: Path, clips: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips, data)
    config = make_config([f"dataset.root={data}", f"output.dir={memory_store.url}", "output.clips_per_shard=4"])

    def session(folder: Path) -> tuple[RemoteRun, Plan]:
        (folder / ".runner").mkdir(parents=True)
        (folder / "left_over").write_text("of an earlier command")
        output = open_remote_run(folder, config)
        assert output is not None
        assert not (folder / "left_over").exists()
        plan = make_plan(folder, config, build_manifest(config.dataset, tmp_path))
        begin_attempt(folder, 0.0)
        output.begin_attempt(plan)
        return output, plan

    first, plan = session(tmp_path / "one")
    assert plan.committed == {}
    committer = RemoteCommitter(
        make_spec(tmp_path / "one", config, shards=plan.shards, row_digests=plan.row_digests, remote=first.handle())
    )
    for number in (0, 1):
        name = f"embeddings/part-{number:05d}.parquet"
        (tmp_path / "one" / "embeddings").mkdir(exist_ok=True)
        (tmp_path / "one" / name).write_bytes(b"rows")
        committer.commit(ShardEntry(number, 4, 4, {name: FileDigest(4, "")}, row_digest=plan.row_digests[number]))
    memory_store.put_text("{}", "result.json")
    first.release()
    changed = sorted(path for path in data.rglob("*") if path.is_file())[0]
    changed.write_bytes(changed.read_bytes() + b"more")
    second, plan = session(tmp_path / "two")
    gone = {0, 1} - plan.committed.keys()
    assert len(gone) == 1
    assert list(memory_store.list_recursive(".runner/commits")) == [
        f".runner/commits/shard-{number:05d}.json" for number in plan.committed
    ]
    assert "result.json" not in memory_store.list_folder()
    assert len((tmp_path / "two/.runner/attempts.jsonl").read_text().splitlines()) == 2
    second.release()


def test_shards_with_clips_that_came_back_are_done_again_from_any_machine(
    memory_store: ObjectStore, tmp_path: Path, clips: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips, data)
    config = make_config([f"dataset.root={data}", f"output.dir={memory_store.url}", "output.clips_per_shard=4"])

    def begin(folder: Path) -> tuple[RemoteRun, Plan]:
        (folder / ".runner").mkdir(parents=True)
        output = open_remote_run(folder, config)
        assert output is not None
        plan = make_plan(folder, config, build_manifest(config.dataset, tmp_path), output.download_clip_rows)
        begin_attempt(folder, 0.0)
        output.begin_attempt(plan)
        return output, plan

    first, plan = begin(tmp_path / "one")
    committer = RemoteCommitter(
        make_spec(tmp_path / "one", config, shards=plan.shards, row_digests=plan.row_digests, remote=first.handle())
    )
    name = ".runner/clips/part-00000.parquet"
    reasons = pa.table({"reason": pa.array([None, "missing", None, None], pa.string()), "detail": pa.nulls(4)})
    pq.write_table(reasons, tmp_path / "one" / name)
    described = {name: digest_file(tmp_path / "one" / name)}
    committer.commit(
        ShardEntry(0, 4, 4, described, ShardCounts(skipped={"missing": 1}), row_digest=plan.row_digests[0])
    )
    first.release()
    clip = Path(os.fsdecode(plan.manifest.table["path"][1].as_py()))
    clip.rename(tmp_path / clip.name)
    second, plan = begin(tmp_path / "two")
    assert set(plan.committed) == {0}
    second.release()
    (tmp_path / clip.name).rename(clip)
    third, plan = begin(tmp_path / "three")
    assert plan.committed == {}
    assert memory_store.list_recursive(".runner/commits") == {}
    third.release()

"""Parts are held while they are merged, and what was copied is compared; the parts here hold bytes, no embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.cli.merge import main as merge
from runner.core.errors import ConfigError
from runner.core.files import digest_file
from runner.core.layout import RunLayout
from runner.core.span import Span
from runner.dataset.table import PartitionInfo
from runner.output.remote.commits import commit_name
from runner.output.state.journal import Journal, ShardCounts, ShardEntry, to_line
from runner.output.state.locks import acquire_run_lock, release_run_lock
from runner.output.state.plan_file import StoredPlan, write_plan
from runner.storage import lease
from runner.storage.lease import Lease
from runner.storage.object_store import ObjectStore
from tests.object_store import Fault, StoreServer, object_store

BUCKET = "held"
ROWS = pa.schema([("clip", pa.string()), ("examples", pa.int32())])


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "RACE_WINDOW_S", 0.02)
        store.bucket(BUCKET, {})
        yield store


def make_part(folder: Path, which: int) -> Path:
    """One of two parts, of a shard of one clip."""
    files = {
        "embeddings/part-00000.parquet": f"embeddings of part {which}".encode(),
        f"npz/{which}.wav.npz": f"npz of part {which}".encode(),
        "npz/metadata.json": f"{which}".encode(),
        "result.json": b'{"status": "finished"}',
        f"{RunLayout.state}/identity.json": b"{}",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    rows = pa.table([[f"{which}.wav"], [1]], ROWS)
    shard = f"{RunLayout.state}/clips/part-00000.parquet"
    (folder / shard).parent.mkdir()
    for name in ("clips.parquet", shard):
        pq.write_table(rows, folder / name)
    partition = PartitionInfo(which, 2, digest="d", clips=2, shards=[which - 1], sizes=[1])
    settings = {"output.formats": ["parquet", "npz"], "dataset.partition": f"{which}/2"}
    write_plan(folder, StoredPlan("", settings, [Span(0, 1)], ["r"], partition))
    described = {name: digest_file(folder / name) for name in ("embeddings/part-00000.parquet", shard)}
    journal = Journal(folder / RunLayout.state / "journal.jsonl")
    journal.append(entry := ShardEntry(0, 1, 1, described, ShardCounts(embedded=1, audio_s=1.0), row_digest="r"))
    journal.close()
    (folder / "commit.json").write_text(to_line(entry) + "\n")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [make_part(tmp_path / str(which), which) for which in (1, 2)]


@pytest.fixture
def urls(server: StoreServer, folders: list[Path], request: pytest.FixtureRequest) -> Iterator[list[str]]:
    server.behave()
    client, found = server.client(), []
    for folder in folders:
        prefix = f"{request.node.name}/{folder.name}"
        for path in (path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix().replace("commit.json", commit_name(0))
            if name != RunLayout.journal:
                client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=path.read_bytes())
        found.append(f"s3://{BUCKET}/{prefix}")
    yield found
    server.behave()


def when(server: StoreServer, method: str, end: str, call: Callable[[], object]) -> None:
    """Have something happen once, before a request is answered."""
    happened: list[object] = []

    def fault(asked: str, key: str) -> Fault:
        if asked == method and key.endswith(end) and not happened:
            happened.append(True)
            call()
        return None

    server.fault = fault


def put(server: StoreServer, url: str, name: str, data: bytes) -> None:
    key = f"{url}/{name}".removeprefix(f"s3://{BUCKET}/")
    server.client().put_object(Bucket=BUCKET, Key=key, Body=data)


def error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.slow
def test_parts_at_urls_are_held_while_they_are_read(server: StoreServer, urls: list[str]) -> None:
    refused: list[str] = []

    def take_up() -> None:
        with pytest.raises(ConfigError) as caught:
            Lease(ObjectStore(urls[1], 5)).acquire()
        refused.append(str(caught.value))

    when(server, "PUT", "whole/embeddings/part-00001.parquet", take_up)
    assert merge([*urls, "--output", f"{urls[0].rpartition('/')[0]}/whole"]) == 0
    assert ["is in use by another command" in told for told in refused] == [True]
    assert [ObjectStore(url, 5).read(RunLayout.lease) for url in urls] == [None, None]


def test_folders_are_held_while_they_are_read(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*map(str, folders), "--output", str(tmp_path / "whole")]
    for plan in (folder / RunLayout.state / "plan.json" for folder in folders):
        plan.write_text(plan.read_text().replace('["parquet", "npz"]', '["parquet"]'))
    acquire_run_lock(folders[1])
    monkeypatch.setattr("runner.output.state.locks._held", {})  # as another process sees it
    assert merge(arguments) == 1
    assert f"output.dir={folders[1]} is locked by process " in error(capsys)
    assert not (tmp_path / "whole").exists()
    monkeypatch.undo()
    release_run_lock(folders[1])
    assert merge(arguments) == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["commit", "embeddings"])
def test_a_part_that_a_command_took_up_meanwhile_is_told(
    server: StoreServer, urls: list[str], capsys: pytest.CaptureFixture[str], what: str
) -> None:
    name = {"commit": commit_name(0), "embeddings": "embeddings/part-00000.parquet"}[what]
    before = ObjectStore(urls[1], 5).read(name) or b""
    when(server, "PUT", "whole/merge_in_progress.json", lambda: put(server, urls[1], name, before[::-1]))
    assert merge([*urls, "--output", f"{urls[0].rpartition('/')[0]}/whole"]) == 1
    assert f"error: {urls[1]} changed during the merge ({name} " in error(capsys)
    assert ObjectStore(f"{urls[0].rpartition('/')[0]}/whole", 5).read("merged.json") is None


@pytest.mark.slow
def test_a_copy_that_is_not_what_the_part_has_is_removed_and_made_again(
    server: StoreServer, urls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, name = f"{urls[0].rpartition('/')[0]}/whole", "embeddings/part-00000.parquet"
    right = ObjectStore(urls[0], 5).read(name) or b""
    when(server, "PUT", "whole/clips.parquet", lambda: put(server, whole, name, right[::-1]))
    assert merge([*urls, "--output", whole]) == 1
    assert f"error: {whole}: removed 1 files that differed from the partitions', {name} among them" in error(capsys)
    assert ObjectStore(whole, 5).read(name) is None
    server.behave()
    assert merge([*urls, "--output", whole]) == 0
    assert ObjectStore(whole, 5).read(name) == right


@pytest.mark.slow
def test_an_npz_file_that_is_not_what_the_part_has_is_copied_anew(
    server: StoreServer, urls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    whole, name = f"{urls[0].rpartition('/')[0]}/whole", "npz/2.wav.npz"
    right = ObjectStore(urls[1], 5).read(name) or b""
    when(server, "PUT", "whole/clips.parquet", lambda: put(server, whole, name, right[::-1]))
    assert merge([*urls, "--output", whole]) == 0
    assert ObjectStore(whole, 5).read(name) == right
    assert f"{whole}/{name} differs from {urls[1]}/{name}: copying it again" in caplog.text


@pytest.mark.slow
def test_a_checksum_that_differs_for_the_same_bytes_is_no_fault(server: StoreServer, urls: list[str]) -> None:
    """As of an object that was put in several pieces, or encrypted by another key."""
    whole = f"{urls[0].rpartition('/')[0]}/whole"
    key = f"{whole}/embeddings/part-00001.parquet".removeprefix(f"s3://{BUCKET}/")
    data = ObjectStore(urls[1], 5).read("embeddings/part-00000.parquet") or b""

    def in_pieces() -> None:
        client = server.client()
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        piece = client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=data)
        parts = {"Parts": [{"PartNumber": 1, "ETag": piece["ETag"]}]}
        client.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload=parts)

    when(server, "PUT", "whole/clips.parquet", in_pieces)
    assert merge([*urls, "--output", whole]) == 0


@pytest.mark.slow
def test_parts_that_may_only_be_read_are_merged_with_a_warning(
    server: StoreServer, urls: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = lambda method, key: "forbidden" if method == "PUT" else None
    assert merge([*urls, "--output", str(tmp_path / "whole")]) == 0
    assert caplog.text.count("can't be locked") == 2

"""One listing for all parts: made by who comes first, read by the others, whatever comes to the data set meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from runner.config.schema import RunConfig
from runner.core.errors import ConfigError, DatasetError
from runner.dataset.frozen_listing import list_clips, listing_of_sweep, read_or_create
from runner.dataset.manifest import build_manifest
from runner.dataset.table import Manifest
from tests.configs import make_config
from tests.object_store import StoreServer, object_store

BUCKET = "listings"


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with object_store() as store:
        store.bucket(BUCKET, {})
        yield store


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.wav").write_bytes(b"RIFF" + bytes(number))
    return folder


def config(data: object, part: str = "1/2", *overrides: str) -> RunConfig:
    settings = (f"dataset.root={data}", f"dataset.partition={part}", "output.clips_per_shard=2", "weights=random")
    return make_config(["dataset=folder", *settings, *overrides])


def clips(manifest: Manifest) -> list[str]:
    names: list[str] = manifest.table["clip"].to_pylist()
    return names


def test_a_file_that_is_added_between_two_jobs_costs_neither(data: Path, tmp_path: Path) -> None:
    listing = str(tmp_path / "shared" / "listing.parquet")
    first = list_clips(config(data), listing, tmp_path)
    (data / "00a.wav").write_bytes(b"RIFF")
    (data / "02.wav").write_bytes(b"RIFF, and longer than it was")
    (data / "03.wav").unlink()
    second = list_clips(config(data, "2/2"), listing, tmp_path)
    assert first.partition is not None
    assert second.partition is not None
    assert second.partition.digest == first.partition.digest
    assert sorted(clips(first) + clips(second)) == [f"{number:02d}.wav" for number in range(12)]
    now = dict(zip(clips(second), second.table["bytes"].to_pylist(), strict=True))
    assert (now["02.wav"], now["03.wav"]) == (28, -1), "its own files are as they are now"
    again = list_clips(config(data), listing, tmp_path)
    assert (again.partition, again.table) == (first.partition, first.table)
    assert [path.name for path in Path(listing).parent.iterdir()] == ["listing.parquet"]


def places(tmp_path: Path, server: StoreServer) -> dict[str, str]:
    return {
        "file": str(tmp_path / "listing.parquet"),
        "s3": f"s3://{BUCKET}/at once/listing.parquet",
        "memory": f"memory://{tmp_path.name}/listing.parquet",
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "s3"])  # fsspec's store in memory shows an object before it is whole
def test_jobs_that_begin_at_once_agree(data: Path, tmp_path: Path, server: StoreServer, kind: str) -> None:
    server.behave()
    settings, place = config(data), places(tmp_path, server)[kind]
    whole = build_manifest(settings.dataset, tmp_path)

    def job(number: int) -> Manifest:
        """Each of them saw other files."""
        return read_or_create(settings, place, lambda: replace(whole, table=whole.table.slice(number)))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(job, range(8)))
    assert len({tuple(clips(each)) for each in found}) == 1
    assert read_or_create(settings, place, lambda: pytest.fail("it is there")).table == found[0].table


@pytest.mark.slow
def test_an_answer_that_is_lost_is_told_from_a_race_that_is_lost(
    data: Path, tmp_path: Path, server: StoreServer
) -> None:
    server.behave()
    server.fault = lambda method, key: (
        "drop" if method == "PUT" and not any(asked == "PUT" for asked, _ in server.requests[:-1]) else None
    )
    place = f"s3://{BUCKET}/lost/listing.parquet"
    whole = build_manifest(config(data).dataset, tmp_path)
    assert read_or_create(config(data), place, lambda: whole).table == whole.table
    assert [asked for asked, _ in server.requests].count("PUT") == 2
    server.behave()


def test_a_listing_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    listing = tmp_path / "listing.parquet"
    list_clips(config(data), str(listing), tmp_path)
    with pytest.raises(DatasetError, match=r"is of another data set \(it differs in dataset\.pattern\)"):
        list_clips(config(data, "2/2", "dataset.pattern=0*"), str(listing), tmp_path)
    listing.write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"is not a listing of this version of the runner .* choose another file"):
        list_clips(config(data), str(listing), tmp_path)
    with pytest.raises(DatasetError, match=r"can't be read .* check it"):
        list_clips(config(data), str(data / "00.wav" / "listing.parquet"), tmp_path)


def test_a_listing_that_can_be_put_nowhere_is_told(data: Path, tmp_path: Path, server: StoreServer) -> None:
    server.behave()
    with pytest.raises(DatasetError, match=r"can't be created .* choose a folder or URL that all"):
        list_clips(config(data), "s3://no-such-bucket/listing.parquet", tmp_path)


def test_a_listing_without_partitions_is_a_mistake(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.listing is what partitions read"):
        make_config(["dataset=folder", f"dataset.root={data}", f"dataset.listing={tmp_path}/listing.parquet"])


def test_a_sweeps_parts_have_theirs_beside_them(data: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    first, second = (
        listing_of_sweep(config(data, part), sweep / number, sweep) for part, number in (("1/2", "0"), ("2/2", "1"))
    )
    assert first == second
    assert Path(first).parent == sweep
    assert listing_of_sweep(config(data, "1/2", "dataset.pattern=0*"), sweep / "0", sweep) != first
    url = listing_of_sweep(config(data, "1/2", "output.dir=s3://bucket/sweep/0"), sweep / "0", sweep)
    assert url == f"s3://bucket/sweep/{Path(first).name}"

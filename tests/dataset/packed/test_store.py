"""Tars and Parquet files in an object store: few requests, and failures that are asked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.config.schema import ParquetDataset
from runner.core.errors import DatasetError
from runner.dataset.packed.address import TarMember, parse_address
from runner.dataset.table import Manifest
from runner.storage.ranges import MAX_REQUEST_BYTES
from tests.dataset.packed.packs import CLIPS, bytes_of, clip_bytes, listed, pack, rows_of, some, web
from tests.object_store import StoreServer, object_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tars: Path, parquets: Path) -> Iterator[StoreServer]:
    with object_store() as store:
        files = {
            f"{root.name}/{path.relative_to(root)}": path.read_bytes()
            for root in (tars, parquets)
            for path in sorted(root.rglob("*.*"))
        }
        long = {f"{number}.wav": clip_bytes(number, rate=48_000, channels=2) for number in range(60)}
        pack(tars.parent / "many.tar", long)
        store.bucket("data", files | {"many.tar": (tars.parent / "many.tar").read_bytes()})
        yield store


def test_tars_in_a_store_are_read_in_runs_of_members(store: StoreServer, tars: Path) -> None:
    url = f"s3://data/{tars.name}"
    store.behave()
    found = listed(web(url))
    assert rows_of(found) == rows_of(listed(web(tars)))
    assert Counter(store.reads()) == Counter(
        {f"data/{tars.name}/{name}": 1 for name in ("part-000.tar", "part-001.tar", "sub/part-002.tar")}
    )
    store.behave()
    assert bytes_of(found) == CLIPS
    assert len(store.reads()) == 3, "a request a tar"
    many = listed(web("s3://data/many.tar"))
    store.behave()
    assert len(bytes_of(many)) == 60
    size = sum(many.table["bytes"].to_pylist())
    assert len(store.reads()) == -(-size // MAX_REQUEST_BYTES)


def test_a_run_that_is_resumed_reads_from_its_first_member_on(store: StoreServer) -> None:
    found = listed(web("s3://data/many.tar"))
    place = parse_address(found.table["path"][57].as_py())
    assert isinstance(place, TarMember)
    store.behave()
    got = bytes_of(Manifest("", found.table.slice(57), "", False, ""))
    assert len(got) == 3
    assert len(store.reads()) == 1


def test_parquet_in_a_store(store: StoreServer, parquets: Path) -> None:
    url = f"s3://data/{parquets.name}"
    found = listed(ParquetDataset(path=url))
    assert rows_of(found) == rows_of(listed(ParquetDataset(path=str(parquets))))
    store.behave()
    assert bytes_of(found) == {**CLIPS, "empty.wav": "empty"}


def test_a_store_that_fails_is_asked_again_or_costs_the_runs_clips(store: StoreServer, tars: Path) -> None:
    found = listed(web(f"s3://data/{tars.name}/part-000.tar"))
    store.behave()
    seen: Counter[str] = Counter()

    def once(method: str, key: str) -> str | None:
        seen[key] += 1
        return "drop" if seen[key] == 1 else None

    store.fault = once
    assert bytes_of(found) == some(0, 4)
    store.fault = lambda method, key: "broken"
    assert set(bytes_of(found, timeout_s=0.3).values()) == {"download_timeout"}
    with pytest.raises(DatasetError, match=r"can't be read|can't be listed"):
        listed(web(f"s3://data/{tars.name}/part-000.tar", download_timeout_s=0.3))
    store.behave()


def test_a_long_member_is_of_one_object_though_it_is_read_in_pieces(
    store: StoreServer, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.dataset.packed.clips._MAX_IN_MEMORY", 1000)
    for module in ("storage.ranges", "dataset.packed.clips"):
        monkeypatch.setattr(f"runner.{module}.MAX_REQUEST_BYTES", 20_000)
    store.behave()
    assert bytes_of(listed(web(f"s3://data/{tars.name}"))) == CLIPS
    old, new = (pack(tmp_path / "a.tar", {"a.wav": clip_bytes(number)}).read_bytes() for number in (2, 5))
    client = store.client()
    client.put_object(Bucket="data", Key="y/a.tar", Body=old)
    found = listed(web("s3://data/y/a.tar"))
    store.behave()

    def replaced(method: str, key: str) -> None:
        if len(store.reads()) == 3:
            client.put_object(Bucket="data", Key="y/a.tar", Body=new)

    store.fault = replaced
    assert bytes_of(found) == {"a.wav": clip_bytes(5)}
    store.behave()


def test_an_object_that_was_replaced_is_noticed(store: StoreServer, tmp_path: Path) -> None:
    client = store.client()
    client.put_object(Bucket="data", Key="x/a.tar", Body=pack(tmp_path / "a.tar", some(0, 2)).read_bytes())
    found = listed(web("s3://data/x/a.tar"))
    client.put_object(Bucket="data", Key="x/a.tar", Body=pack(tmp_path / "a.tar", some(1, 3)).read_bytes())
    assert set(bytes_of(found).values()) == {"unreadable"}

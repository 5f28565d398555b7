"""Data sets in an object store: the same rows as from a folder, each object read once, whatever the store's moods."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.config.composition import compose_config
from runner.config.schema import FolderDataset, ManifestDataset
from runner.contract.spec import DatasetSummary
from runner.core.errors import ClipError, ConfigError, DatasetError, DiskFullError
from runner.core.failures import failure_of
from runner.dataset.listing import walk, walk_store
from runner.dataset.manifest import build_manifest
from runner.output.rows import ClipRow
from runner.pipeline.skip_limit import SkipLimit
from runner.storage.filesystem import open_store
from runner.storage.prefetch import FetchedFile, Prefetcher, fetch
from runner.storage.whole_object import download_object
from tests.conftest import Done, environment, run_command
from tests.object_store import Fault, StoreServer, object_store

EXTENSIONS = ["wav", "flac", "mp3"]
QUICK = (
    *("device=cpu", "weights=random", "model.conv=direct", "memory=conservative", "memory.decode_workers=1"),
    *("tracking=none", "profile=off", "output.clips_per_shard=4"),
)


def clip_bytes(number: int, form: str = "WAV", rate: int = 16_000, channels: int = 1) -> bytes:
    """A sound of a few seconds."""
    rng = np.random.default_rng(number)
    sound = rng.uniform(-0.3, 0.3, ((1 + number % 3) * rate, channels))
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=form)
    return file.getvalue()


CLIPS = {
    **{f"speech/clip {number}.wav": clip_bytes(number) for number in range(6)},
    "speech/a#b%20c?.wav": clip_bytes(7),
    "speech/ünïcode/ß.flac": clip_bytes(8, "FLAC", 44_100, 2),
    "speech-more/x.mp3": clip_bytes(9, "MP3", 44_100),
    "speech.wav": clip_bytes(10),
    "a/b/c/d.wav": clip_bytes(11),
    "broken.wav": b"RIFF nothing",
}


@pytest.fixture(scope="module")
def store():
    with object_store() as store:
        store.bucket("data", {f"set/{name}": data for name, data in CLIPS.items()} | {"set/": b"", "set/a/": b""})
        yield store


@pytest.fixture
def quiet(store: StoreServer):
    store.behave()
    yield store
    store.behave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("local")
    for name, data in CLIPS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def run(root: object, out: Path, *settings: str, fails: bool = False) -> Done:
    done = run_command("dataset=folder", f"dataset.root={root}", f"output.dir={out}", *QUICK, *settings)
    assert (done.status != 0) == fails, done.err
    return done


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Path]]:
    """The run of the same files from a folder, which goes on beside the first test."""

    def one() -> Path:
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        run(folder, out)
        return out

    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(one)


def assert_same(out: Path, beside: Future[Path]) -> None:
    undisturbed = beside.result()
    for table in ("clips.parquet", "embeddings"):
        found, expected = pq.read_table(out / table), pq.read_table(undisturbed / table)
        assert found.equals(expected), table


def test_a_run_from_a_store_gives_the_bits_of_one_from_a_folder(
    quiet: StoreServer, undisturbed: Future[Path], tmp_path: Path
) -> None:
    done = run("s3://data/set", tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed)
    assert Counter(quiet.reads()) == Counter(f"data/set/{name}" for name in CLIPS)
    assert done.result["dataset"]["root"] == "s3://data/set"


class Hiccups:
    """Each key is throttled, dropped and refused by turns before it is given."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.made: Counter[Fault] = Counter()

    def __call__(self, method: str, key: str) -> Fault:
        self.seen[key] += 1
        fault = ("slow_down", "drop", "broken", None)[(self.seen[key] + len(key)) % 4] if self.seen[key] < 4 else None
        self.made[fault] += 1
        return fault


def test_a_store_that_goes_away_ends_the_run_and_the_same_command_goes_on_through_hiccups(
    quiet: StoreServer, undisturbed: Future[Path], tmp_path: Path
) -> None:
    away = "speech/a#b%20c?.wav"

    def fault(method: str, key: str) -> Fault:
        gone = any(key.endswith(away) for _, key in quiet.requests)
        return "broken" if gone else None

    quiet.fault = fault
    failed = run("s3://data/set", tmp_path / "run", "dataset.download_timeout_s=0.5", "dataset.prefetch=1", fails=True)
    told = " ".join((failed.out + failed.err).split())
    assert "can't be reached any more" in told
    assert "rerun the same command to resume" in told
    quiet.behave()
    quiet.fault = hiccups = Hiccups()
    run("s3://data/set", tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed)
    assert min(hiccups.made[fault] for fault in ("slow_down", "drop", "broken")) > 0


def test_an_object_that_is_not_given_is_skipped_and_tried_again_when_resumed(
    quiet: StoreServer, undisturbed: Future[Path], tmp_path: Path
) -> None:
    quiet.fault = lambda method, key: "broken" if key.endswith("x.mp3") else None
    run("s3://data/set", tmp_path / "run", "dataset.download_timeout_s=0.5")
    reasons = {row["clip"]: row["reason"] for row in pq.read_table(tmp_path / "run/clips.parquet").to_pylist()}
    assert reasons["speech-more/x.mp3"] == "download_timeout"
    quiet.behave()
    again = run("s3://data/set", tmp_path / "run")
    assert "skipped for transient reasons" in " ".join((again.out + again.err).split())
    assert_same(tmp_path / "run", undisturbed)
    assert len(quiet.reads()) <= 4, "only that clip's shard is done again"


@pytest.mark.parametrize(("fault", "reason"), [("gone", "missing"), ("forbidden", "unreadable")])
def test_final_answers_are_reasons_and_not_asked_for_again(quiet: StoreServer, fault: str, reason: str) -> None:
    quiet.fault = lambda method, key: fault
    with pytest.raises(ClipError) as caught:
        fetch("s3://data/set/speech.wav", 30)
    assert caught.value.reason == reason
    assert len(quiet.requests) == 1


@pytest.mark.parametrize("fault", ["throttled", "incomplete", "expired"])
def test_refusals_that_pass_are_known_by_their_code(quiet: StoreServer, fault: str) -> None:
    quiet.fault = lambda method, key: fault if len(quiet.requests) == 1 else None
    with fetch("s3://data/set/speech.wav", 30) as fetched:
        assert Path(fetched.path).read_bytes() == CLIPS["speech.wav"]


def test_an_object_that_is_replaced_while_its_download_breaks_off_is_read_whole(quiet: StoreServer) -> None:
    old, new = (bytes([value]) * 400_000 for value in (1, 2))
    put = partial(quiet.client().put_object, Bucket="data", Key="other/replaced.wav")
    put(Body=old)

    def fault(method: str, key: str) -> Fault:
        if len(quiet.requests) == 1:
            return "drop"
        put(Body=new)
        return None

    quiet.fault = fault
    with fetch("s3://data/other/replaced.wav", 30) as fetched:
        assert Path(fetched.path).read_bytes() == new
    assert len(quiet.requests) == 2


def test_other_drivers_objects_that_are_replaced_meanwhile_are_read_anew(tmp_path: Path) -> None:
    class Resuming:
        protocol = "other"
        versions = iter("aab" + "bb")  # it is looked at before and after a read
        reads = 0

        def ukey(self, name: str) -> str:
            return next(self.versions)

        def get_file(self, name: str, path: str) -> None:
            self.reads += 1
            Path(path).write_text("first half, second half"[: 12 * self.reads])

    store = Resuming()
    store.ukey("x")
    with pytest.raises(ConnectionError, match="replaced during its download"):
        download_object(store, "other://x", str(tmp_path / "x"))
    download_object(store, "other://x", str(tmp_path / "x"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_temporary_folder_ends_the_run_and_says_so(quiet: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FetchedFile.__init__

    def full(self: FetchedFile, suffix: str) -> None:
        whole(self, suffix)
        self.path = "/dev/full"

    monkeypatch.setattr(FetchedFile, "__init__", full)
    with pytest.raises(ClipError) as caught:
        fetch("s3://data/set/speech.wav", 30)
    assert caught.value.reason == "disk_full"
    assert len(quiet.requests) == 1
    with pytest.raises(DiskFullError, match=r"the temporary folder is full .* TMPDIR") as ended:
        limit_of("s3://data/set")(skipped("speech.wav", "disk_full"))
    assert failure_of(ended.value).kind == "disk_full"


def limit_of(root: str) -> SkipLimit:
    dataset = ManifestDataset(path="rows.csv", download_timeout_s=0.5)
    return SkipLimit(dataset, DatasetSummary(root=root, digest="", clips=100), 0)


def skipped(clip: str, reason: str) -> ClipRow:
    return ClipRow(
        clip, "skipped", reason, "detail", 0, 0.0, None, None, False, None, 0.0, np.zeros((0, 128), np.float32)
    )


def test_a_store_is_listed_once_in_a_while_whatever_is_skipped(
    quiet: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = limit_of("s3://data/set")
    for number in range(20):
        limit(skipped(f"{number}.wav", "missing"))
    assert len(quiet.requests) == 1
    monkeypatch.setattr("runner.pipeline.skip_limit._LIST_EVERY_S", 0.0)
    limit = limit_of("s3://data/set")
    limit(skipped("a.wav", "missing"))
    quiet.fault = lambda method, key: "broken"
    with pytest.raises(DatasetError, match="can't be reached any more"):
        limit(skipped("b.wav", "download_timeout"))


def test_a_store_that_may_be_read_and_not_listed_is_there(quiet: StoreServer) -> None:
    """A key that is not there is forbidden then."""
    quiet.fault = lambda method, key: "forbidden"
    limit_of("s3://data/set")(skipped("a.wav", "unreadable"))
    quiet.fault = lambda method, key: "bad_key"
    with pytest.raises(DatasetError, match="see to network, endpoint and credentials"):
        limit_of("s3://data/set")(skipped("a.wav", "unreadable"))


def test_a_store_that_falls_silent_is_asked_again(quiet: StoreServer) -> None:
    quiet.fault = lambda method, key: "stall" if len(quiet.requests) == 1 else None
    with fetch("s3://data/set/speech.wav", 2) as fetched:
        assert Path(fetched.path).read_bytes() == CLIPS["speech.wav"]


def test_objects_are_fetched_ahead_and_never_more_than_asked(quiet: StoreServer) -> None:
    ahead = Prefetcher(3, 30)
    paths = [f"s3://data/set/speech/clip {number}.wav".encode() for number in range(6)]
    assert [ahead.begin(job, path) for job, path in enumerate(paths)] == [True] * 3 + [False] * 3
    for job, path in enumerate(paths):
        with ahead.pop(job, path, lambda: None) as fetched:
            assert Path(fetched.path).read_bytes() == CLIPS[f"speech/clip {job}.wav"]
    with ahead.pop(9, paths[0], lambda: None) as fetched:
        assert fetched.suffix == ".wav"


@pytest.mark.parametrize("page_keys", [2, 1000])
def test_listing_is_in_the_order_of_a_folders(
    quiet: StoreServer, folder: Path, monkeypatch: pytest.MonkeyPatch, page_keys: int
) -> None:
    monkeypatch.setattr("runner.dataset.listing._PAGE_KEYS", page_keys)
    local = [(name, size) for name, size, _ in walk(folder, Counter())]
    found = list(walk_store("s3://data/set", 5))
    assert [(name, size) for name, size, _ in found] == local
    assert all(mtime_ns > 1e18 for _, _, mtime_ns in found)
    assert len(quiet.requests) == (7 if page_keys == 2 else 1)


def test_other_stores_are_listed_folder_by_folder_in_the_same_order(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, data in CLIPS.items():
        memory.pipe_file(f"/set/{name}", data)
    local = [(name, size) for name, size, _ in walk(folder, Counter())]
    assert [(name, size) for name, size, _ in walk_store("memory://set", 5)] == local


def test_the_digest_is_that_of_the_same_files_elsewhere(quiet: StoreServer, folder: Path, tmp_path: Path) -> None:
    there, here = (
        build_manifest(FolderDataset(root=str(root), extensions=EXTENSIONS), tmp_path)
        for root in ("s3://data/set/", folder)
    )
    assert there.digest == here.digest


def test_a_manifest_may_lie_in_the_store(quiet: StoreServer, tmp_path: Path) -> None:
    rows = "path,start,end,label\nspeech/clip 2.wav,0.5,1.5,dog\nspeech.wav,,,cat\n"
    quiet.client().put_object(Bucket="data", Key="set/rows.csv", Body=rows.encode())
    found = build_manifest(ManifestDataset(path="s3://data/set/rows.csv"), tmp_path)
    assert found.root == "s3://data/set"
    assert found.table["path"].to_pylist() == [b"s3://data/set/speech/clip 2.wav", b"s3://data/set/speech.wav"]
    assert found.table["clip"].to_pylist() == ["speech/clip 2.wav#t=0.5,1.5", "speech.wav"]
    local = tmp_path / "rows.csv"
    local.write_text(rows)
    same = build_manifest(ManifestDataset(path=str(local), root="s3://data/set"), tmp_path)
    assert same.table.equals(found.table)


@pytest.mark.parametrize("path", ["s3://other/x.wav", "../x.wav"])
def test_a_manifest_may_not_lead_out_of_the_prefix(tmp_path: Path, path: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"path\n{path}\n")
    with pytest.raises(DatasetError, match="is outside of the data set's root s3://data/set"):
        build_manifest(ManifestDataset(path=str(file), root="s3://data/set"), tmp_path)


def test_a_bucket_that_is_not_there(quiet: StoreServer, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"root=s3://nowhere/x does not exist"):
        build_manifest(FolderDataset(root="s3://nowhere/x", extensions=EXTENSIONS), tmp_path)


def test_a_prefix_that_may_not_be_listed(quiet: StoreServer, tmp_path: Path) -> None:
    quiet.fault = lambda method, key: "forbidden"
    with pytest.raises(DatasetError, match="may not be listed"):
        build_manifest(FolderDataset(root="s3://data/set", extensions=EXTENSIONS), tmp_path)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    dataset = compose_config(["dataset=folder", f"dataset.root=file://{tmp_path}/a%20b"]).dataset
    assert isinstance(dataset, FolderDataset)
    assert dataset.root == str(tmp_path / "a b")


@pytest.mark.parametrize("url", ["s3://me:secret@data/x", "s3://data/x?token=1"])
def test_credentials_have_no_place_in_a_url(url: str) -> None:
    with pytest.raises(ConfigError, match="leave it out") as caught:
        open_store("dataset.root", url)
    assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'vggish-runner\[hf\]'"):
        open_store("dataset.root", "hf://datasets/somebody/clips")


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="s3://, gs:// or hf://"):
        open_store("dataset.root", "ftpx://bucket/x")


def test_local_data_needs_no_driver(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from runner.config.schema import FolderDataset; import "
        "runner.pipeline.decode_worker;"
        "from runner.dataset.manifest import build_manifest;"
        f"build_manifest(FolderDataset(root={str(folder)!r}, extensions=['wav']), Path('.'));"
        "sys.exit('fsspec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60).returncode == 0

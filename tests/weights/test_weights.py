"""Getting the weights: from a local HTTP server with all its ways of failing, from the disk, or random."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from runner.config.schema import AudiosetWeights, AutoWeights, FileWeights, RandomWeights
from runner.core.errors import WeightsError
from runner.weights.download import CHECKPOINT, PCA_PARAMETERS, ReleasedFile
from runner.weights.selection import WeightsRequest, resolve_weights

CONTENT = {
    "params.npz": np.random.default_rng(0).bytes(5_000),
    "model.ckpt": np.random.default_rng(1).bytes(3_000_000),
}
RELEASE = tuple(ReleasedFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items())


class Server(ThreadingHTTPServer):
    """A release server whose behaviour a test sets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = dict(CONTENT)
        self.ranges = True
        self.cut_after: int | None = None
        self.silent = False
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if self.server.silent:
            time.sleep(5)
            return
        data = self.server.content.get(self.path.lstrip("/"))
        if data is None:
            self.send_error(404)
            return
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if first else 200)
        body = data[first:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut_after is not None and len(body) > self.server.cut_after:
            self.wfile.write(body[: self.server.cut_after])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def resolve(base_url: str, models: Path, kind: type[AudiosetWeights] = AudiosetWeights, **options):
    weights = kind(base_url=base_url, timeout_s=1.0)
    return resolve_weights(WeightsRequest(weights, models, **options), models / "vggish", RELEASE)


def test_the_registry_is_the_published_one() -> None:
    assert (CHECKPOINT.name, CHECKPOINT.bytes) == ("vggish_model.ckpt", 291_108_469)
    assert CHECKPOINT.sha256.startswith("0962b191")
    assert (PCA_PARAMETERS.name, PCA_PARAMETERS.bytes) == ("vggish_pca_params.npz", 73_020)
    assert PCA_PARAMETERS.sha256.startswith("4d878af3")


def test_a_good_download_is_kept_and_not_repeated(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    choice = resolve(server.url, tmp_path, progress=lambda *news: told.append(news))
    assert Path(str(choice.path)).read_bytes() == CONTENT["model.ckpt"]
    assert Path(str(choice.pca_path)).read_bytes() == CONTENT["params.npz"]
    assert (choice.source, choice.is_random) == ("audioset", False)
    assert told[-1] == ("model.ckpt", 3_000_000, 3_000_000)
    server.requests.clear()
    assert resolve(server.url, tmp_path).path == choice.path
    assert server.requests == []
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_cut_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1_400_000
    choice = resolve(server.url, tmp_path)
    assert Path(str(choice.path)).read_bytes() == CONTENT["model.ckpt"]
    ranges = [wanted for path, wanted in server.requests if path == "/model.ckpt"]
    assert ranges[0] is None
    assert all(ranges[1:])
    assert len(ranges) == 3


@pytest.mark.slow
def test_what_came_before_a_failure_is_kept_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.cut_after = 300_000
    with pytest.raises(WeightsError, match=r"model\.ckpt could not be downloaded"):
        resolve(server.url, tmp_path)
    came = (tmp_path / "vggish/.model.ckpt.part").stat().st_size
    assert came > 0
    server.cut_after = None
    server.requests.clear()
    choice = resolve(server.url, tmp_path)
    assert server.requests == [("/model.ckpt", f"bytes={came}-")]
    assert Path(str(choice.path)).read_bytes() == CONTENT["model.ckpt"]


def test_a_server_without_ranges_sends_it_whole_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "vggish").mkdir()
    (tmp_path / "vggish/.model.ckpt.part").write_bytes(CONTENT["model.ckpt"][:1000])
    server.ranges = False
    choice = resolve(server.url, tmp_path)
    assert Path(str(choice.path)).read_bytes() == CONTENT["model.ckpt"]


def test_a_wrong_file_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.content["model.ckpt"] = b"x" * 3_000_000
    with pytest.raises(WeightsError, match="SHA-256"):
        resolve(server.url, tmp_path)
    assert not (tmp_path / "vggish/model.ckpt").exists()
    server.content = dict(CONTENT)
    assert resolve(server.url, tmp_path).source == "audioset"


def test_a_file_that_is_too_large_is_refused_early(server: Server, tmp_path: Path) -> None:
    server.content["model.ckpt"] = b"x" * 9_000_000
    with pytest.raises(WeightsError, match="larger than"):
        resolve(server.url, tmp_path)


def test_a_damaged_file_on_disk_is_replaced(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(str(resolve(server.url, tmp_path).path))
    path.write_bytes(b"y" * 3_000_000)
    assert resolve(server.url, tmp_path).path == str(path)
    assert path.read_bytes() == CONTENT["model.ckpt"]
    assert "not the released file" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["404", "closed port", "no answer"])
def test_no_weights_is_an_error_on_own_data_and_random_on_the_demo(
    server: Server, tmp_path: Path, trouble: str
) -> None:
    url = "http://127.0.0.1:9/" if trouble == "closed port" else server.url
    server.content.clear()
    server.silent = trouble == "no answer"
    started = time.monotonic()
    for kind in (AudiosetWeights, AutoWeights):
        with pytest.raises(WeightsError) as refused:
            resolve(url, tmp_path, kind)
        for words in ("params.npz", "weights=file", "weights=random", str(tmp_path / "vggish")):
            assert words in str(refused.value)
    choice = resolve(url, tmp_path, AutoWeights, is_demo=True)
    assert (choice.requested, choice.source, choice.seed, choice.is_random) == ("auto", "random", 0, True)
    with pytest.raises(WeightsError):
        resolve(url, tmp_path, AudiosetWeights, is_demo=True)
    assert time.monotonic() - started < 30


def test_several_processes_at_once_get_one_good_file(server: Server, tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(str(resolve(server.url, tmp_path).path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert Path(found[0]).read_bytes() == CONTENT["model.ckpt"]
    assert len([path for path, _ in server.requests if path == "/model.ckpt"]) == 1


def test_random_and_file_need_no_network(tmp_path: Path) -> None:
    random = resolve_weights(WeightsRequest(RandomWeights(seed=3), tmp_path), tmp_path)
    assert (random.source, random.seed, random.is_random) == ("random", 3, True)
    (tmp_path / "v2.ckpt.index").touch()
    (tmp_path / "v1.ckpt").touch()
    for name in ("v1.ckpt", "v2.ckpt"):
        assert resolve_weights(WeightsRequest(FileWeights(path=str(tmp_path / name)), tmp_path), tmp_path).path == str(
            tmp_path / name
        )
    with pytest.raises(WeightsError, match="does not exist"):
        resolve_weights(WeightsRequest(FileWeights(path=str(tmp_path / "no.ckpt")), tmp_path), tmp_path)
    with pytest.raises(WeightsError, match=r"without \.index"):
        resolve_weights(WeightsRequest(FileWeights(path=str(tmp_path / "no.index")), tmp_path), tmp_path)

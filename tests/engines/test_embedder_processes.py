"""What the worker makes of the messages of several processes, which are played here."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.contract.events import Events
from runner.contract.result import Startup
from runner.core.errors import EngineError
from runner.core.failures import Failure, failure_of
from runner.engines import embedder_processes
from runner.engines.embedder_process import Answer, Begun, EmbedderProcess, Failed, Loaded, _share_of
from runner.engines.embedder_processes import EmbedderProcesses
from runner.engines.reports import EmbedReport, Work, combined, joined
from runner.output.rows import ClipRow
from runner.output.state.journal import ShardCounts, ShardEntry
from runner.pipeline.messages import BatchTiming, PipelineStats, Progress
from tests.configs import make_config
from tests.results import make_spec

SHARDS = tuple((first, first + 10) for first in range(0, 60, 10))


class Played(EmbedderProcess):
    """A process that answers the worker's messages with what ``PLAYS`` has for its GPU, in a thread."""

    def __init__(self, spec: Any, gpu: int, place: int, count: int) -> None:
        started = vars(SimpleNamespace(gpu=gpu, loaded=None, skipped=0, progress=None, report=None, answer=None))
        vars(self).update(started, shards=set(), waiting=set(), entries=[], is_asked=False)
        self.connection, theirs = Pipe()
        self.handle = SimpleNamespace(join=lambda timeout=None: None, kill=lambda: None, exitcode=-9, pid=gpu)
        threading.Thread(target=self._play, args=(PLAYS[gpu], theirs), daemon=True).start()

    @staticmethod
    def _play(play: Callable[..., Iterator[object]], connection: Any) -> None:
        with connection:
            for message in play(connection.recv):
                connection.send(message)


PLAYS: dict[int, Callable[..., Iterator[object]]] = {}


def loaded(precision: str = "float16", error: float = 0.0, startup_s: float = 1.0) -> Loaded:
    metrics = {"startup_s": startup_s, "parity_rel_err": error}
    return Loaded(Startup(resolved={"memory.decode_workers": 1}), metrics, {"precision": precision}, {"a": "b"})


def honest(recv: Callable[[], Any]) -> Iterator[object]:
    """Commits each shard, and ends its round when it is told that there are no more."""
    yield loaded()
    while (message := recv())[0] != "close":
        if message[0] == "shard" and message[1] is not None:
            yield Begun(message[1])
            yield ShardEntry(message[1], 10, 20, {}, ShardCounts(embedded=9, audio_s=20.0, skipped={"missing": 1}))
        elif message[0] == "shard":
            yield Answer(EmbedReport(PipelineStats(started_at=5.0, results_at=6.0)))
        elif message[0] == "cpu_s":
            yield Answer(1.5)


def processes(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *plays: Callable[..., Iterator[object]],
    settings: Sequence[str] = (),
) -> Any:
    monkeypatch.setattr(embedder_processes, "EmbedderProcess", Played)
    PLAYS.clear()
    PLAYS.update(enumerate(plays))
    spec = make_spec(folder, make_config(["weights=random", "dataset=demo", *settings]), shards=SHARDS)
    return EmbedderProcesses(spec, range(len(plays)), Events(io.StringIO()))


class Log:
    def __init__(self) -> None:
        self.entries: list[ShardEntry] = []
        self.skipped = 0

    def append(self, entry: ShardEntry) -> None:
        self.entries.append(entry)

    def skip(self, row: ClipRow | None = None, count: int = 1) -> None:
        self.skipped += count

    @property
    def work(self) -> Work:
        forget = lambda count: self.skip(count=-count)  # noqa: E731
        return Work(range(len(SHARDS)), iter(()), 60, self, self.skip, forget)


SKIPPED = ClipRow("a.wav", "skipped", "missing", None, 0, 0.0, None, None, False, None, 0.0, ())


def test_a_shard_of_a_process_that_dies_after_the_last_was_handed_out_is_done_in_another_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def dies(recv: Callable[[], Any]) -> Iterator[object]:
        yield loaded()
        while recv() != ("shard", None):
            yield SKIPPED

    own, log = processes(monkeypatch, tmp_path, honest, dies), Log()
    own.load()
    reports = own.embed(log.work)
    assert sorted(entry.shard for entry in log.entries) == list(range(6))
    assert log.skipped == 0, "the clips that it skipped are skipped again by another"
    assert combined(reports).stats.steady_s == 1.0
    own.close()


def test_shards_that_a_lost_process_has_committed_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(recv: Callable[[], Any]) -> Iterator[object]:
        yield loaded()
        recv()
        _, shard = recv()
        yield ShardEntry(shard, 10, 20, {}, ShardCounts(embedded=10, audio_s=20.0))
        yield Failed(Failure("exception", "the device is gone"), replica_failed=True)

    own, log = processes(monkeypatch, tmp_path, fails, honest), Log()
    own.load()
    progress = combined(own.embed(log.work)).stats.progress
    assert sorted(entry.shard for entry in log.entries) == list(range(6))
    assert (progress.clips, progress.examples, progress.audio_s, progress.shards) == (10, 20, 20.0, 1)
    assert own.call("cpu_s") == [1.5]
    own.close()


def test_a_process_that_begins_its_shards_gets_more_before_any_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[list[int]] = []

    def writes_last(begins: bool) -> Callable[..., Iterator[object]]:
        def play(recv: Callable[[], Any]) -> Iterator[object]:
            own: list[int] = []
            taken.append(own)
            yield loaded()
            recv()
            while (shard := recv()[1]) is not None:
                own.append(shard)
                if begins:
                    yield Begun(shard)
            yield from (ShardEntry(shard, 10, 20, {}, ShardCounts(embedded=10)) for shard in own)
            yield Answer(EmbedReport(PipelineStats(started_at=5.0, results_at=6.0)))

        return play

    own = processes(monkeypatch, tmp_path, writes_last(begins=True), writes_last(begins=False))
    own.load()
    own.embed(Log().work)
    own.close()
    assert sorted(map(len, taken)) == [1, 5], "one that has not begun its shard gets no other"


def test_any_other_failure_is_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(recv: Callable[[], Any]) -> Iterator[object]:
        yield loaded()
        recv()
        yield Failed(failure_of(OSError(28, "No space left on device")))
        recv()

    own = processes(monkeypatch, tmp_path, honest, full)
    own.load()
    with pytest.raises(Exception, match=r"the disk of output\.dir is full"):
        own.embed(Log().work)
    own.close()


def test_all_processes_embed_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def other(recv: Callable[[], Any]) -> Iterator[object]:
        yield loaded("float32")
        recv()

    own = processes(monkeypatch, tmp_path, honest, other)
    with pytest.raises(EngineError, match=r"different numbers: precision \(float16 then, float32 now\)"):
        own.load()
    own.close()


def test_startup_is_that_of_the_slowest_and_parity_that_of_the_worst(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def slow(recv: Callable[[], Any]) -> Iterator[object]:
        yield loaded(error=0.1, startup_s=9.0)
        recv()

    def wrong(recv: Callable[[], Any]) -> Iterator[object]:
        yield loaded(error=0.2, startup_s=3.0)
        recv()

    own = processes(monkeypatch, tmp_path, honest, slow, wrong)
    own.load()
    assert own.metrics == {"startup_s": 9.0, "parity_rel_err": 0.2}
    assert own.startup.resolved["memory.decode_workers"] == 3
    own.close()


def test_processes_start_their_writers_when_they_are_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The committed shards are verified by then, and what a killed writer left is removed."""
    asked: list[object] = []

    def opens(startup_s: float) -> Callable[..., Iterator[object]]:
        def play(recv: Callable[[], Any]) -> Iterator[object]:
            yield loaded()
            asked.append(recv())
            yield Answer(loaded(startup_s=startup_s))
            recv()

        return play

    own = processes(monkeypatch, tmp_path, opens(9.0), opens(3.0))
    own.load()
    assert (asked, own.metrics["startup_s"]) == ([], 1.0)
    own.open(13)
    assert (asked, own.metrics["startup_s"]) == ([("open", 7)] * 2, 9.0)
    own.close()


def test_a_question_that_one_process_cannot_answer_leaves_no_answer_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def answers(*given: object) -> Callable[..., Iterator[object]]:
        def play(recv: Callable[[], Any]) -> Iterator[object]:
            yield loaded()
            for answer in given:
                recv()
                yield Answer(answer)
            recv()

        return play

    failed = Failed(Failure("exception", "no room"))
    own = processes(monkeypatch, tmp_path, answers(failed, 3.0), answers(1.0, 2.0))
    own.load()
    with pytest.raises(Exception, match="no room"):
        own.call("run_pass")
    assert own.call("cpu_s") == [3.0, 2.0]
    own.close()


def test_a_question_to_a_process_that_dies_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dies(recv: Callable[[], Any]) -> Iterator[object]:
        yield loaded()
        recv()

    own = processes(monkeypatch, tmp_path, dies, honest)
    own.load()
    with pytest.raises(EngineError, match="the system killed its process"):
        own.call_first("batch_size_curve")
    assert own.call("cpu_s") == [1.5]
    own.close()


def test_the_first_process_measures_the_batch_size_before_the_others_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = []

    def slow(recv: Callable[[], Any]) -> Iterator[object]:
        time.sleep(0.2)
        started.append("the first is ready")
        yield loaded()
        recv()

    def later(recv: Callable[[], Any]) -> Iterator[object]:
        started.append("the second starts")
        yield loaded()
        recv()

    own = processes(monkeypatch, tmp_path, slow, later, settings=["memory.batch_size=auto"])
    own.load()
    assert started == ["the first is ready", "the second starts"]
    assert own.pids == [0, 1]
    own.close()


def test_statistics_of_processes_add_up_on_one_clock() -> None:
    first = PipelineStats(
        Progress(clips=2, skipped={"missing": 1}, audio_s=5.0),
        [BatchTiming(0, 0.0, 1.0, 4.0, 8)],
        started_at=10.0, results_at=14.0, input_wait_s={0: 1.0}, writers=2, write_s=3.0,
    )  # fmt: skip
    second = PipelineStats(
        Progress(clips=3, skipped={"missing": 1, "empty": 2}, audio_s=7.0),
        [BatchTiming(0, 0.5, None, 1.0, 4)],
        started_at=12.0, results_at=15.0, input_wait_s={0: 2.0}, writers=1, write_s=1.0,
    )  # fmt: skip
    both = joined([first, second], [0, 1])
    assert both.timings == [BatchTiming(1, 2.5, None, 3.0, 4), BatchTiming(0, 0.0, 1.0, 4.0, 8)]
    assert both.progress == Progress(clips=5, skipped={"missing": 2, "empty": 2}, audio_s=12.0)
    assert (both.steady_s, both.input_wait_s, both.writers, both.write_s) == (5.0, {0: 1.0, 1: 2.0}, 3, 4.0)


def test_each_process_has_its_share_of_what_is_set_and_the_defaults_of_a_gpu() -> None:
    shares = ["memory.decode_workers=9", "memory.writer_processes=1", "memory.host_limit_mib=16384"]
    share = _share_of(make_config(["weights=random", "dataset=demo", *shares]).memory, 4)
    assert (share.decode_workers, share.writer_processes, share.host_limit_mib) == (2, 1, 4096)
    plain = make_config(["weights=random", "dataset=demo"]).memory
    share = _share_of(plain, 4)
    assert (share.decode_workers, share.writer_processes, share.host_limit_mib) == (None, None, "auto")
    assert share.default_host_limit_mib == plain.default_host_limit_mib
    assert share.embeddings_mib == plain.embeddings_mib // 4

"""The parity gate of many actors: measured once a device model, taken over by the others, also when it is missed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runner.compose import compose_config
from runner.gate import once_a_model
from runner.parity import fixed_signals
from runner.ray_registry import Registry

CONFIG = compose_config([]).parity
EXPECTED = fixed_signals()[:, :128]


class FakeSession:
    """Gives the reference's answers, times ``gain``, and counts how often it is asked."""

    fewest = 8
    compiler = {"effective": "graph"}  # noqa: RUF012
    device_name = "/CPU:0"

    def __init__(self, name: str = "a GPU", precision: str = "float32", gain: float = 1.0) -> None:
        self.metadata = SimpleNamespace(
            device={"effective": "gpu", "name": name},
            precision={"effective": precision},
            model={"conv": {"effective": "direct"}},
            weights={"checksum": "c"},
        )
        self.gain, self.asked = np.float32(gain), 0

    def embed_windows(self, windows: np.ndarray) -> np.ndarray:
        self.asked += 1
        return windows[:, :128] * self.gain


class InThisProcess:
    """The registry of a run without Ray: its coroutines in a loop of their own."""

    def __init__(self, patience_s: float = 30.0) -> None:
        self._registry, self._patience_s = Registry({}), patience_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def ask(self, key: str) -> dict[str, Any] | None:
        asked = asyncio.run_coroutine_threadsafe(self._registry.verdict(key, self._patience_s), self._loop)
        return asked.result(60)

    def tell(self, key: str, verdict: dict[str, Any] | None) -> None:
        asyncio.run_coroutine_threadsafe(self._registry.tell(key, verdict), self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def verdicts() -> Iterator[InThisProcess]:
    registry = InThisProcess()
    yield registry
    registry.close()


def take(verdicts: InThisProcess, who: str, session: FakeSession) -> tuple[str | None, dict[str, Any]]:
    result: dict[str, Any] = {"metrics": {}}
    missed = once_a_model(verdicts, who)([session], EXPECTED, CONFIG, cached=True, result=result)
    return missed, result


def test_the_first_measures_and_the_others_take_over(verdicts: InThisProcess) -> None:
    sessions = [FakeSession() for _ in range(4)]
    found: dict[int, dict[str, Any]] = {}

    def work(number: int) -> None:
        found[number] = take(verdicts, f"host:{number}", sessions[number])[1]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(session.asked for session in sessions) == 1
    (first,) = [number for number, session in enumerate(sessions) if session.asked]
    assert [result["parity"]["measured_by"] for result in found.values()] == [f"host:{first}"] * 4
    assert [number for number, result in found.items() if not result["parity"]["taken_over"]] == [first]
    assert all(result["parity"]["passed"] for result in found.values())
    assert all(result["metrics"] == found[first]["metrics"] for result in found.values())


@pytest.mark.parametrize("other", [FakeSession("another GPU"), FakeSession(precision="bfloat16")])
def test_another_model_or_precision_is_measured_for_itself(verdicts: InThisProcess, other: FakeSession) -> None:
    take(verdicts, "one", FakeSession())
    _, result = take(verdicts, "two", other)
    assert other.asked == 1
    assert result["parity"]["measured_by"] == "two"


def test_a_miss_is_everyones(verdicts: InThisProcess) -> None:
    first, second = take(verdicts, "one", FakeSession(gain=1.5)), take(verdicts, "two", FakeSession())
    assert first[0] is not None
    assert "gives other embeddings than the CPU in float32" in first[0]
    assert second[0] == first[0]
    assert not second[1]["parity"]["passed"]


def test_one_that_fails_to_measure_leaves_it_to_the_next(verdicts: InThisProcess) -> None:
    broken = FakeSession()
    broken.embed_windows = lambda windows: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        take(verdicts, "one", broken)
    assert take(verdicts, "two", FakeSession())[1]["parity"]["measured_by"] == "two"


def test_nobody_waits_for_long_for_one_that_died() -> None:
    verdicts = InThisProcess(patience_s=0.05)
    assert verdicts.ask("model") is None  # and never tells
    assert verdicts.ask("model") is None
    verdicts.tell("model", {"by": "two"})
    assert verdicts.ask("model") == {"by": "two"}
    verdicts.close()

"""The parity gate of many actors: measured once a device model, taken over by the others, also when it is missed."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runner.compose import compose_config
from runner.gate import once_a_model
from runner.parity import fixed_signals

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


def take(folder: Path, who: str, session: FakeSession) -> tuple[str | None, dict[str, Any]]:
    result: dict[str, Any] = {"metrics": {}}
    missed = once_a_model(folder, who)([session], EXPECTED, CONFIG, cached=True, result=result)
    return missed, result


def test_the_first_measures_and_the_others_take_over(tmp_path: Path) -> None:
    sessions = [FakeSession() for _ in range(4)]
    found: dict[int, dict[str, Any]] = {}

    def work(number: int) -> None:
        found[number] = take(tmp_path / "parity", f"host:{number}", sessions[number])[1]

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
def test_another_model_or_precision_is_measured_for_itself(tmp_path: Path, other: FakeSession) -> None:
    take(tmp_path, "one", FakeSession())
    _, result = take(tmp_path, "two", other)
    assert other.asked == 1
    assert result["parity"]["measured_by"] == "two"


def test_a_miss_is_everyones(tmp_path: Path) -> None:
    first, second = take(tmp_path, "one", FakeSession(gain=1.5)), take(tmp_path, "two", FakeSession())
    assert first[0] is not None
    assert "gives other embeddings than the CPU in float32" in first[0]
    assert second[0] == first[0]
    assert not second[1]["parity"]["passed"]


def test_a_verdict_that_cannot_be_read_is_measured_anew(tmp_path: Path) -> None:
    take(tmp_path, "one", FakeSession())
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text()[:40])
    session = FakeSession()
    take(tmp_path, "two", session)
    assert session.asked == 1

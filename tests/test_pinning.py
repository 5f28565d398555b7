"""Page-locking, with a stand-in for the CUDA runtime: what it is asked, and what becomes of its refusal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runner import pinning
from runner.slots import SlotMemory


@pytest.fixture
def memory():
    memory = SlotMemory(slots=2, rows=3, processes=1)
    yield memory
    memory.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    made: list[tuple[object, ...]] = []

    def register(address, size, flags) -> int:
        made.append(("register", address.value, size.value, flags))
        return 0

    def unregister(address) -> int:
        made.append(("unregister", address.value))
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister, cudaGetLastError=lambda: 0)
    monkeypatch.setattr(pinning, "_runtime", lambda: runtime)
    return made


def test_all_slots_are_locked_and_let_go(memory: SlotMemory, calls: list[tuple[object, ...]]) -> None:
    with pinning.pinned(memory) as trouble:
        assert trouble is None
    address = memory.windows(0, "int16").ctypes.data
    assert address % 4096 == 0
    assert calls == [("register", address, memory.bytes.nbytes, 1), ("unregister", address)]


def test_a_refusal_is_told(memory: SlotMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(cudaHostRegister=lambda *arguments: 2, cudaGetLastError=lambda: 2)
    monkeypatch.setattr(pinning, "_runtime", lambda: runtime)
    with pinning.pinned(memory) as trouble:
        assert "gave error 2" in str(trouble)


def test_no_runtime_is_told(memory: SlotMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "_RUNTIMES", ("libnosuchthing.so.12",))
    with pinning.pinned(memory) as trouble:
        assert "not found" in str(trouble)

"""The instruction sets that TensorFlow's kernels may use."""

from __future__ import annotations

import os

import pytest

from runner.devices.instruction_sets import InstructionSets, instruction_sets, prefer_onednn

ALL = frozenset({"fpu", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize(
    ("environment", "units"),
    [
        ({}, ("avx512_bf16", "amx_bf16")),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core_amx"}, ("avx512_bf16", "amx_bf16")),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16"}, ("avx512_bf16",)),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, ()),
        ({"DNNL_MAX_CPU_ISA": "AVX2"}, ()),
        ({"ONEDNN_MAX_CPU_ISA": "no such name, which oneDNN ignores"}, ("avx512_bf16", "amx_bf16")),
        ({"TF_ENABLE_ONEDNN_OPTS": "0"}, ()),
        ({"TF_ENABLE_ONEDNN_OPTS": "1"}, ("avx512_bf16", "amx_bf16")),
    ],
)
def test_limits_of_the_environment_take_units_away(
    environment: dict[str, str], units: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.devices.instruction_sets.cpu_flags", lambda: ALL)
    assert instruction_sets(environment).bfloat16_units == units


def test_a_key_of_measurements_names_the_vector_instructions_and_the_limit() -> None:
    assert str(InstructionSets(ALL)) == "amx_bf16 avx2 avx512_bf16 avx512f fma, no limit"
    assert str(InstructionSets(ALL, "AVX2")).endswith(", ONEDNN_MAX_CPU_ISA=AVX2")
    assert str(InstructionSets(ALL, onednn=False)).endswith(", TF_ENABLE_ONEDNN_OPTS=0")


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [({"avx2"}, None, "1"), ({"avx2"}, "0", "0"), ({"asimd"}, None, None), (set(), None, None)],
)
def test_onednn_is_on_where_it_is_faster_and_nobody_said_otherwise(
    flags: set[str], before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.devices.instruction_sets.cpu_flags", lambda: frozenset(flags))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", before or "")
    if before is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    prefer_onednn()
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == after

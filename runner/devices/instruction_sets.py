"""Instruction sets of the CPU that TensorFlow's kernels use: the processor's own, within the limits of oneDNN.

oneDNN, which computes TensorFlow's convolutions and matrix products on x86, generates code for the instruction set that
``ONEDNN_MAX_CPU_ISA`` allows.  Source: the oneDNN developer guide, "CPU Dispatcher Control".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from runner.devices.host import cpu_flags

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
"""Environment variable of TensorFlow: 0 computes without oneDNN's operations."""

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables of oneDNN, the older name last."""

_BELOW_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
"""Limits that leave oneDNN no bfloat16 convolution on a processor with AVX-512."""

_BELOW_AVX512_BF16 = (*_BELOW_BFLOAT16, "AVX512_CORE", "AVX512_CORE_VNNI")

_BELOW_AMX = (*_BELOW_AVX512_BF16, "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512")


@dataclass(frozen=True)
class InstructionSets:
    """The instruction sets that TensorFlow may use.

    Attributes:
        flags: the processor's, by Linux's names.
        limit: oneDNN's, by its name in upper case; empty for none.
        onednn: whether TensorFlow computes with oneDNN.
    """

    flags: frozenset[str] = frozenset()
    limit: str = ""
    onednn: bool = True

    @property
    def restriction(self) -> str:
        """The environment variable that takes instructions away; empty where none does."""
        if not self.onednn:
            return f"{ONEDNN}=0"
        return f"{_LIMITS[0]}={self.limit}" if self.limit in _BELOW_AMX else ""

    @property
    def bfloat16_units(self) -> tuple[str, ...]:
        """Flags of the instructions in use that multiply bfloat16."""
        usable = {"avx512_bf16": self.limit not in _BELOW_AVX512_BF16, "amx_bf16": self.limit not in _BELOW_AMX}
        return tuple(flag for flag, is_usable in usable.items() if self.onednn and is_usable and flag in self.flags)

    @property
    def has_bfloat16(self) -> bool:
        """Whether TensorFlow has bfloat16 convolutions, however slow: it asks oneDNN for them where there is AVX-512,
        whatever oneDNN's limit."""
        return not (self.onednn and "avx512f" in self.flags and self.limit in _BELOW_BFLOAT16)

    def __str__(self) -> str:
        """All that the speed of a kernel depends on, as a key of measurements."""
        vectors = sorted(flag for flag in self.flags if flag.startswith(("avx", "amx", "fma", "sve", "asimd")))
        return f"{' '.join(vectors)}, {self.restriction or 'no limit'}"


def instruction_sets(environment: Mapping[str, str] = os.environ) -> InstructionSets:
    """Return the instruction sets that TensorFlow uses in this process once ``prefer_onednn`` was called."""
    limit = next((environment[name].upper() for name in _LIMITS if environment.get(name)), "")
    return InstructionSets(cpu_flags(), limit, environment.get(ONEDNN, "").lower() not in ("0", "false"))


def prefer_onednn() -> None:
    """Let TensorFlow, if it is not yet imported, compute with oneDNN on every x86 processor with AVX2, unless the
    environment says otherwise.

    By itself it does so on Linux only where there are VNNI, BF16 or AMX (``DefaultOneDnnPolicy`` in
    tensorflow/core/util/port.cc), and otherwise takes slower convolutions.
    """
    if "avx2" in cpu_flags():
        os.environ.setdefault(ONEDNN, "1")

"""Which number format the network computes in, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.devices import DeviceInfo, DeviceType
from runner.hardware import cpu_flags

_AMPERE = [8, 0]
_CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class PrecisionChoice:
    """What was asked, what took effect, and why; ``warning`` is set where the user should know of a cost."""

    requested: str
    effective: str
    reason: str
    warning: str | None = None

    def to_dict(self) -> dict[str, str]:
        """Plain values, fit for result.json."""
        return {"requested": self.requested, "effective": self.effective, "reason": self.reason}

    @property
    def compute_dtype(self) -> str:
        """Name of the TensorFlow dtype of weights and activations."""
        return "float32" if self.effective == "tf32" else self.effective


def choose_precision(requested: str, device: DeviceInfo, flags: frozenset[str] | None = None) -> PrecisionChoice:
    """Decide the precision for ``device``; ``flags`` are the processor's (asked of the machine when None)."""
    flags = cpu_flags() if flags is None else flags
    if requested == "auto":
        return _automatic(device, flags)
    asked = f"precision={requested} was asked for"
    if requested == "tf32" and not _has_tf32(device):
        why = f"{device.name} has no TF32 (NVIDIA Ampere and later do), so float32 is used"
        return PrecisionChoice(requested, "float32", why, why)
    if device.type is DeviceType.CPU and requested == "float16":
        slow = "float16 is a hundred times slower than float32 on a CPU: use float32, or bfloat16"
        return PrecisionChoice(requested, requested, asked, slow)
    if device.type is DeviceType.CPU and requested == "bfloat16" and not flags.intersection(_CPU_BFLOAT16):
        return PrecisionChoice(
            requested, requested, asked, "this CPU has neither AVX512_BF16 nor AMX: bfloat16 is slow; use float32"
        )
    return PrecisionChoice(requested, requested, asked)


def _automatic(device: DeviceInfo, flags: frozenset[str]) -> PrecisionChoice:
    if device.type is DeviceType.CPU:
        if found := [flag for flag in _CPU_BFLOAT16 if flag in flags]:
            return PrecisionChoice("auto", "bfloat16", f"the CPU multiplies bfloat16 natively ({', '.join(found)})")
        return PrecisionChoice("auto", "float32", "the CPU has no native bfloat16 (AVX512_BF16 or AMX)")
    if _has_tf32(device):
        return PrecisionChoice("auto", "bfloat16", "the GPU has bfloat16 tensor cores (Ampere or later)")
    return PrecisionChoice("auto", "float32", "the device is not known to have bfloat16 units")


def _has_tf32(device: DeviceInfo) -> bool:
    capability: Any = device.details.get("compute_capability")
    return device.type is DeviceType.GPU and capability is not None and list(capability) >= _AMPERE

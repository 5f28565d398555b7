"""Choice of the network's number format, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.config.groups.precision import PRECISIONS
from runner.contract.result import Decision
from runner.core.errors import ConfigError
from runner.devices.detection import DeviceType
from runner.devices.instruction_sets import InstructionSets, instruction_sets

if TYPE_CHECKING:
    from runner.devices.detection import DeviceInfo

_AMPERE = [8, 0]

_VOLTA = [7, 0]


@dataclass(frozen=True)
class PrecisionChoice:
    """The requested number format, the one in effect, and why.

    Attributes:
        requested: precision of the configuration.
        effective: precision in effect.
        reason: why this one.
        warning: a cost that the user should know.
        others: precisions to try next, fastest first, if the device fails the parity gate in this one.
    """

    requested: str
    effective: str
    reason: str
    warning: str | None = None
    others: tuple[str, ...] = ()

    def next(self, why: str) -> PrecisionChoice | None:
        """Return the choice after this one has failed the gate because of ``why``; None if there is none left."""
        if not self.others:
            return None
        reason = f"{self.effective} failed parity ({why}); the next fastest is {self.others[0]}"
        return PrecisionChoice(self.requested, self.others[0], reason, None, self.others[1:])

    def among(self, possible: Sequence[str]) -> PrecisionChoice:
        """Return the choice of the fastest precision that is ``possible`` for the model."""
        others = tuple(name for name in self.others if name in possible)
        if self.effective in possible:
            return replace(self, others=others)
        reason = f"the model can't be computed in {self.effective}, which is the fastest here"
        return PrecisionChoice(self.requested, others[0], reason, None, others[1:])

    @property
    def decision(self) -> Decision:
        """The choice as a run reports it."""
        return Decision(self.requested, self.effective, self.reason)

    @property
    def compute_dtype(self) -> str:
        """Name of the TensorFlow dtype of weights and activations."""
        return "float32" if self.effective == "tf32" else self.effective


def choose_precision(
    requested: str,
    device: DeviceInfo,
    cpu: InstructionSets | None = None,
    possible: Sequence[str] = PRECISIONS[1:],
) -> PrecisionChoice:
    """Choose the precision for a device.

    Args:
        requested: auto, or one that the model can be computed in.
        device: the device.
        cpu: the processor's instruction sets; those of this process when None.
        possible: those that the model can be computed in, float32 among them.

    Raises:
        ConfigError: bfloat16 was asked for, and oneDNN's limit leaves no convolution in it.
    """
    cpu = instruction_sets() if cpu is None else cpu
    if requested == "auto":
        return _automatic(device, cpu).among(possible)
    asked = f"precision={requested} was asked for"
    if requested == "tf32" and not _has_tf32(device):
        why = f"{device.name} has no TF32 (NVIDIA Ampere and later do), so float32 is used"
        return PrecisionChoice(requested, "float32", why, why)
    if device.type is DeviceType.CPU and requested == "float16":
        slow = "float16 is a hundred times slower than float32 on a CPU: use float32, or bfloat16"
        return PrecisionChoice(requested, requested, asked, slow)
    if device.type is DeviceType.CPU and requested == "bfloat16":
        if not cpu.has_bfloat16:
            raise ConfigError(f"precision=bfloat16 is not possible under {cpu.restriction}: unset it, or use float32")
        if not cpu.bfloat16_units:
            slow = f"{_no_bfloat16(cpu)}: bfloat16 is slow; use float32"
            return PrecisionChoice(requested, requested, asked, slow)
    return PrecisionChoice(requested, requested, asked)


def _automatic(device: DeviceInfo, cpu: InstructionSets) -> PrecisionChoice:
    if device.type is DeviceType.CPU:
        units = cpu.bfloat16_units
        if not units:
            return PrecisionChoice("auto", "float32", _no_bfloat16(cpu))
        if "amx_bf16" in cpu.flags and "amx_bf16" not in units:  # measured: 0.6 × as fast
            why = f"{cpu.restriction} leaves no AMX, and AVX512_BF16 alone is slower than float32 on a CPU with AMX"
            return PrecisionChoice("auto", "float32", why)
        why = f"the CPU multiplies bfloat16 natively ({', '.join(units)})"
        return PrecisionChoice("auto", "bfloat16", why, others=("float32",))
    if _has_tf32(device):
        why = "the fastest of the formats that the GPU has tensor cores for"
        return PrecisionChoice("auto", "float16", why, others=("bfloat16", "tf32", "float32"))
    if _capability(device) >= _VOLTA:
        why = "the GPU has float16 tensor cores (Volta or later)"
        return PrecisionChoice("auto", "float16", why, others=("float32",))
    return PrecisionChoice("auto", "float32", "the device is not known to have units for fewer bits")


def _no_bfloat16(cpu: InstructionSets) -> str:
    if cpu.restriction and {"avx512_bf16", "amx_bf16"} & cpu.flags:
        return f"{cpu.restriction} leaves the CPU no native bfloat16"
    return "the CPU has no native bfloat16 (AVX512_BF16 or AMX)"


def _has_tf32(device: DeviceInfo) -> bool:
    return _capability(device) >= _AMPERE


def _capability(device: DeviceInfo) -> list[int]:
    """Return a CUDA device's compute capability; an empty list, which is below all, for other devices."""
    capability = device.details.compute_capability if device.details else None
    return list(capability) if device.type is DeviceType.GPU and capability is not None else []

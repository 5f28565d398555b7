"""Choice of a run's device, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.core.errors import DeviceError
from runner.devices.detection import DeviceType

if TYPE_CHECKING:
    from runner.devices.detection import DeviceInfo

ALL = "all"
"""Value of ``device.index`` for every device of the kind."""

AUTO_ORDER = (DeviceType.METAL, DeviceType.GPU, DeviceType.CPU)


@dataclass(frozen=True)
class DeviceChoice:
    """The device of a run: the requested kind, the device in use, and why.

    Attributes:
        requested: kind of device that was requested.
        device: the device in use, or the first of them.
        index: its index among its kind.
        reason: why this one.
        fallback_reason: why the requested one is not in use.
        considered: all devices of the machine.
        others: indices of the further devices with ``device.index=all``.
    """

    requested: DeviceType
    device: DeviceInfo
    index: int
    reason: str
    fallback_reason: str | None
    considered: Sequence[DeviceInfo]
    others: tuple[int, ...] = ()

    @property
    def indices(self) -> tuple[int, ...]:
        """Indices, among their kind, of all devices in use."""
        return (self.index, *self.others)

    @property
    def effective(self) -> DeviceType:
        """The kind of device in use."""
        return self.device.type


def choose_device(
    requested: DeviceType | str, devices: Sequence[DeviceInfo], *, index: int | str = 0, strict: bool = False
) -> DeviceChoice:
    """Choose a run's device among ``devices``; ``index`` selects one of its kind, or ``all`` of them.

    ``auto`` prefers Metal, then CUDA, then the CPU.  In place of an absent device the CPU is chosen, with a
    ``fallback_reason``.

    Raises:
        DeviceError: the requested device is absent and ``strict`` is set.
    """
    requested = DeviceType(requested)
    cpu = next(info for info in devices if info.type is DeviceType.CPU)
    if requested is DeviceType.AUTO:
        best = next(kind for kind in AUTO_ORDER if _present(devices, kind))
        preferred = AUTO_ORDER[: AUTO_ORDER.index(best)]
        passed_over = [info for kind in preferred for info in devices if info.type is kind]
        reason = f"auto chose {best.value}, the best device present"
        if passed_over:
            reason += "; " + "; ".join(f"no {info.type.value}: {info.reason}" for info in passed_over)
        kind = best
    else:
        kind, reason = requested, f"device={requested.value} was asked for"
    if kind is DeviceType.CPU:
        return DeviceChoice(requested, cpu, 0, reason, None, devices)
    candidates = [info for info in devices if info.type is kind]
    present = [number for number, info in enumerate(candidates) if info.available]
    if index == ALL and present:
        first, *others = present
        reason += f"; device.index=all: {len(present)} of them"
        return DeviceChoice(requested, candidates[first], first, reason, None, devices, tuple(others))
    if index != ALL and int(index) in present:
        return DeviceChoice(requested, candidates[int(index)], int(index), reason, None, devices)
    if present and int(index) < len(candidates):
        others_present = " or ".join(f"device.index={number}" for number in present)
        missing = f"{candidates[int(index)].reason} (number {index}; {others_present} has room)"
    elif present:
        missing = f"device.index={index}, but there are only {len(candidates)} (0 to {len(candidates) - 1})"
    else:
        missing = candidates[0].reason
    fallback = f"{kind.value} is not available: {missing}"
    if strict:
        raise DeviceError(f"{fallback} (device.strict=true forbids the fallback to the CPU)")
    return DeviceChoice(requested, cpu, 0, f"fell back to the CPU, because {fallback}", fallback, devices)


def _present(devices: Sequence[DeviceInfo], kind: DeviceType) -> list[DeviceInfo]:
    return [info for info in devices if info.type is kind and info.available]

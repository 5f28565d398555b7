"""Embeds audio data sets with VGGish on whatever device a machine has.

The names below are imported on first use, so that ``import runner`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.build import load_vggish_model
    from runner.devices import (
        DeviceInfo,
        DeviceType,
        detect_available_devices,
        get_tf_session_config,
        log_device_info,
    )

__version__ = "0.1.0"

__all__ = [
    "DeviceInfo",
    "DeviceType",
    "detect_available_devices",
    "get_tf_session_config",
    "load_vggish_model",
    "log_device_info",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'runner' has no attribute {name!r}")
    module = "runner.build" if name == "load_vggish_model" else "runner.devices"
    return getattr(importlib.import_module(module), name)

"""Embed audio data sets with VGGish on the device of your choice.

The public names are imported on first use, so that ``import runner`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from runner.core.version import VERSION

if TYPE_CHECKING:
    from runner.devices.detection import DeviceInfo, DeviceType
    from runner.devices.probe import detect_available_devices, get_tf_session_config, log_device_info
    from runner.inference.api import load_vggish_model

__version__ = VERSION

__all__ = [
    "DeviceInfo",
    "DeviceType",
    "detect_available_devices",
    "get_tf_session_config",
    "load_vggish_model",
    "log_device_info",
]


_MODULES = {
    "DeviceInfo": "runner.devices.detection",
    "DeviceType": "runner.devices.detection",
    "detect_available_devices": "runner.devices.probe",
    "get_tf_session_config": "runner.devices.probe",
    "load_vggish_model": "runner.inference.api",
    "log_device_info": "runner.devices.probe",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'runner' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)

"""``model=``: the network."""

from __future__ import annotations

from dataclasses import dataclass

from runner.config.checks import one_of


@dataclass
class ModelConfig:
    """How the network is computed."""

    conv: str = "auto"
    """Algorithm of the deep convolutions on a CPU in float32: direct, winograd, or auto (the faster, measured once)."""

    def __post_init__(self) -> None:
        one_of("model.conv", self.conv, ("auto", "direct", "winograd"))

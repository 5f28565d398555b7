"""``model=``: the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.checks import one_of

if TYPE_CHECKING:
    from runner.core.model_spec import ModelSpec


@dataclass
class ModelConfig:
    """The network: an option has its own keys."""

    name: str = "vggish"
    """vggish."""

    @property
    def spec(self) -> ModelSpec:
        """Rate, windows and outputs."""
        raise NotImplementedError(f"model={self.name} has no specification")


@dataclass
class VGGishModel(ModelConfig):
    """VGGish, and how it is computed."""

    name: str = "vggish"
    """vggish."""

    conv: str = "auto"
    """Algorithm of the deep convolutions on a CPU in float32: direct, winograd, or auto (the faster, measured once)."""

    def __post_init__(self) -> None:
        one_of("model.conv", self.conv, ("auto", "direct", "winograd"))

    @property
    def spec(self) -> ModelSpec:
        from runner.vggish.spec import VGGISH

        return VGGISH

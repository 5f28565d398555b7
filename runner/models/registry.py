"""Finds the model that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.config.groups.model import load_installed_model
from runner.config.schema import InstalledModel, SavedModelConfig, VGGishConfig, YamnetConfig
from runner.core.errors import ConfigError
from runner.models.base import EmbeddingModel

if TYPE_CHECKING:
    from runner.config.schema import ModelConfig


def find_model(config: ModelConfig) -> EmbeddingModel:
    """Return the model of an option of the group ``model``.

    Raises:
        ConfigError: another package's model can't be imported, or is none.
    """
    if isinstance(config, VGGishConfig):
        from runner.models.vggish.model import VGGish

        return VGGish(config.conv, config.spec)
    if isinstance(config, YamnetConfig):
        from runner.models.yamnet.model import Yamnet

        return Yamnet()
    if isinstance(config, SavedModelConfig):
        from runner.models.savedmodel.model import SavedModel

        return SavedModel(config)
    if isinstance(config, InstalledModel):
        model = load_installed_model(config.name)()
        if not isinstance(model, EmbeddingModel):
            raise ConfigError(f"model={config.name} is no EmbeddingModel but {type(model).__name__}: see its package")
        return model
    raise NotImplementedError(f"model={config.name} has no model")

"""Configurations for tests of what a configuration does, a tenth of a second cheaper than ``compose_config``'s."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from runner.config import composition
from runner.config.arguments import check_overrides
from runner.config.schema import RunConfig
from runner.core.paths import conf_dir


def make_config(overrides: Sequence[str] = ()) -> RunConfig:
    """What ``compose_config`` gives for overrides that Hydra can compose; it composes each choice of groups once.

    Raises:
        ConfigError: as ``compose_config`` does.
    """
    check_overrides(overrides)
    groups = tuple(override for override in overrides if (conf_dir() / override.partition("=")[0]).is_dir())
    config = copy.deepcopy(_composed(groups))
    values = [override for override in overrides if override not in groups]
    for override in OverridesParser.create().parse_overrides(values):
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    return composition.to_run_config(config)


@functools.cache
def _composed(groups: tuple[str, ...]) -> DictConfig:
    composition.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(composition.CONFIG_NAME, overrides=list(groups))

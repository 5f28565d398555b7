"""One composition of a run's configuration, where Hydra alone makes two: the first only to read ``hydra.mode``."""

from __future__ import annotations

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig


class RunLoader(ConfigLoaderImpl):
    """Hydra's loader of configurations, which keeps the one of ``Hydra.get_mode`` for ``Hydra.run`` or ``multirun``."""

    _composed: tuple[str | None, list[str], RunMode, DictConfig] | None = None

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a configuration, or return the kept one of the same overrides."""
        if not validate_sweep_overrides:  # Hydra.get_mode's: the mode is not known, and errors are ignored
            parsed = OverridesParser.create().parse_overrides(overrides)
            run_mode = RunMode.MULTIRUN if any(each.is_sweep_override() for each in parsed) else RunMode.RUN
            config = super().load_configuration(config_name, overrides, run_mode, from_shell)
            self._composed = config_name, list(overrides), run_mode, config
            return config
        kept = self._kept(config_name, overrides, run_mode)
        return super().load_configuration(config_name, overrides, run_mode, from_shell) if kept is None else kept

    def _kept(self, config_name: str | None, overrides: list[str], run_mode: RunMode) -> DictConfig | None:
        """Return the kept configuration if this one would be equal, but for the mode that Hydra may append."""
        if self._composed is None:
            return None
        name, words, mode, config = self._composed
        self._composed = None
        appended = f"hydra.mode={run_mode.name}"
        if config_name != name or mode not in (run_mode, RunMode.RUN) or overrides not in (words, [*words, appended]):
            return None
        if overrides != words:
            config.hydra.mode = run_mode
            config.hydra.overrides.hydra.append(appended)
        return config

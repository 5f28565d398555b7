"""Between Hydra and the typed configuration: schemas and resolvers in, ``RunConfig`` out, errors in one message."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from runner.config import DEVICES, SCHEMAS, RunConfig, from_dict
from runner.devices import DeviceType, surely_absent
from runner.errors import ConfigError
from runner.paths import conf_dir, default_models, default_outputs
from runner.stores import as_path, is_url, working_folder
from runner.validation import validate


def register() -> None:
    """Put the schemas into Hydra's ConfigStore and the resolvers into OmegaConf; harmless when done again."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(group="schema", name=name, node=schema)
    OmegaConf.register_new_resolver("runner_models", lambda: str(default_models()), replace=True)
    OmegaConf.register_new_resolver("runner_outputs", lambda: str(default_outputs()), replace=True)
    OmegaConf.register_new_resolver("runner_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("runner_devices", _devices, replace=True)


def _run_dir(given: str | None, outputs: str, kind: str, day: str, time_of_day: str) -> str:
    """``output.dir`` if it is given (for an object store its working folder), else one of its own under the outputs."""
    if is_url(given):
        return str(working_folder(given, Path(outputs).expanduser()))
    if given:
        return str(Path(as_path(given)).expanduser())
    return str(Path(outputs).expanduser() / kind / day / time_of_day)


def _devices() -> str:
    """The devices that this machine may have, for a sweep over them."""
    absent = surely_absent()
    return ",".join(name for name in DEVICES[1:] if DeviceType(name) not in absent)


def typed(config: DictConfig) -> RunConfig:
    """The checked configuration of a composed config, Hydra's own node aside.

    Raises:
        ConfigError: as ``validate`` does.
        omegaconf.errors.OmegaConfBaseException: an interpolation that can't be resolved.
    """
    values = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=True
    )
    assert isinstance(values, dict)
    try:
        run = from_dict({str(key): value for key, value in values.items()})
        run.output.dir = run.output.dir and as_path(run.output.dir)
        validate(run)
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        # Types are checked while composing, but what an interpolation comes to is not.
        raise ConfigError(
            f"a value is of the wrong kind ({error}): see what the configuration comes to with --cfg job --resolve"
        ) from error
    return run


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """The checked configuration that a command line's overrides come to, outside a Hydra run.

    Raises:
        ConfigError: as ``validate`` does.
        hydra.errors.HydraException: an override that can't be composed.
    """
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), composing():
        return typed(compose("config", overrides=list(overrides)))


@contextmanager
def composing() -> Iterator[None]:
    """Around Hydra's work: turns what it raises about a group's option that is no name into ``ConfigError``."""
    try:
        yield
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        raise ConfigError(f"a group was given something that is no option's name ({error}): see --help") from error


def expand_sweep(config: DictConfig) -> list[RunConfig]:
    """Compose and check every job of a sweep with Hydra's basic sweeper; other sweepers choose as they go: the base.

    Raises:
        ConfigError: of the first job that is not sound.
    """
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    sweeper = config.hydra.sweeper
    arguments = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    arguments += list(config.hydra.overrides.task)
    if not str(sweeper.get("_target_")).endswith("BasicSweeper"):
        return [typed(config)]
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(arguments):
        key = override.get_key_element()
        values = override.sweep_string_iterator() if override.is_sweep_override() else None
        choices[key] = [f"{key}={value}" for value in values or [override.get_value_element_as_str()]]
    assert GlobalHydra.instance().is_initialized()
    return [typed(compose("config", overrides=list(job))) for job in itertools.product(*choices.values())]


def one_message(error: BaseException) -> str:
    """Hydra's and OmegaConf's words about a configuration that can't be composed, shortened to what helps a person."""
    if "hydra/sweeper/optuna" in str(error):
        return "experiment=tune needs Optuna: pip install 'vggish-runner[tune]'"
    if "hydra/launcher/submitit" in str(error):
        return "this launcher needs Submitit: pip install 'vggish-runner[slurm]'"
    lines = [line.rstrip() for line in str(error).splitlines()]
    unhelpful = ("full_key:", "object_type=", "Config search path", "provider=", "reference_type=", "To append")
    kept = []
    for line in lines:
        if line.strip().startswith(unhelpful) or not line.strip():
            continue
        kept.append(line.strip() if line.startswith("\t") else line)
    cause = error.__cause__
    if cause is not None and type(cause).__module__.startswith("omegaconf"):
        kept += [line.strip() for line in str(cause).splitlines() if not line.strip().startswith(unhelpful)]
    keys = [line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("full_key:")]
    text = " ".join(dict.fromkeys(kept))
    return f"{keys[0]}: {text}" if keys and keys[0] not in text else text

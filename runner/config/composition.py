"""From Hydra's composed configuration to ``RunConfig``: schemas, resolvers, sweeps, and readable errors."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from runner.config.arguments import check_overrides, several_values
from runner.config.groups.model import installed_models
from runner.config.renamed import renamed_key, renamed_resolver
from runner.config.run_loader import RunLoader
from runner.config.schema import DEVICES, FrontendConfig, InstalledModel, from_dict, schemas
from runner.config.validation import validate
from runner.core.errors import ConfigError
from runner.core.paths import as_path, conf_dir, default_models, default_outputs, is_url, staging_dir
from runner.core.redact import without_credentials
from runner.devices.detection import DeviceType, unavailable_devices

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

CONFIG_NAME = "config"

_NO_OPTION = re.compile(r"Could not find '(.+)/([^/]*)'\s+Available options in '.+':((?:\n\t\S+)+)")

_NO_GROUP = re.compile(r"Error merging override (\w+)=(.*)\s+Invalid type assigned: str is not a subclass")


@functools.cache
def register() -> None:
    """Register schemas and ``RunLoader`` with Hydra and the resolvers with OmegaConf, once in a process."""
    hydra.ConfigLoaderImpl = RunLoader  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    for name, schema in schemas().items():
        store.store(group="schema", name=name, node=schema)
    for name in installed_models():
        store.store(group="model", name=name, node=InstalledModel(name))
        store.store(group="frontend", name=name, node=_frontend_of_installed_model())
    OmegaConf.register_new_resolver("runner.models_dir", lambda: str(default_models()), replace=True)
    OmegaConf.register_new_resolver("runner.outputs_root", lambda: str(default_outputs()), replace=True)
    OmegaConf.register_new_resolver("runner.output_dir", _output_dir, replace=True)
    OmegaConf.register_new_resolver("runner.model", _fact_of_model, replace=True)
    OmegaConf.register_new_resolver("runner.devices", _devices, replace=True)


def _frontend_of_installed_model() -> DictConfig:
    """Return the front end of another package's model, which is imported only where it is chosen."""
    frontend: DictConfig = OmegaConf.structured(FrontendConfig)
    frontend.hop_s, frontend.window_s = "${runner.model:hop_s,${model.name}}", "${runner.model:window_s,${model.name}}"
    return frontend


def _fact_of_model(fact: str, name: str) -> float:
    """Return ``hop_s`` or ``window_s`` of an installed package's model."""
    return float(getattr(InstalledModel(name).spec, fact))


def _output_dir(output_dir: str | None, outputs: str, subfolder: str, day: str, time_of_day: str) -> str:
    """Return the folder of a run: ``output.dir``, the staging folder of a URL, or a new one below the outputs."""
    root = Path(os.path.expanduser(outputs))
    if is_url(output_dir):
        return str(staging_dir(output_dir, root))
    if output_dir:
        return str(Path(os.path.expanduser(as_path(output_dir))))
    return str(root / subfolder / day / time_of_day)


def _devices() -> str:
    """Return the devices that this machine may have, as a sweep lists them."""
    unavailable = unavailable_devices()
    return ",".join(name for name in DEVICES[1:] if DeviceType(name) not in unavailable)


def to_run_config(config: DictConfig) -> RunConfig:
    """Build and check the typed configuration of a composed one, without Hydra's own node.

    Raises:
        ConfigError: as ``from_dict`` and ``validate`` do.
        omegaconf.errors.OmegaConfBaseException: an interpolation that can't be resolved.
    """
    if "hydra" in config:
        config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    try:
        run = from_dict({str(key): value for key, value in values.items()})
        validate(run)
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        # Hydra checks types while composing, but not those of resolved interpolations.
        raise ConfigError(
            f"a value has the wrong type ({error}): print the composed configuration with --cfg job --resolve"
        ) from error
    return run


def typed_words(hydra: Any) -> tuple[str, ...]:
    """Return the overrides that a configuration was composed from, after options for another conf/, as typed.

    Overrides of Hydra's own keys are left out.

    Args:
        hydra: the node ``hydra`` of a composed config.
    """
    words = []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            words.append(f"--config-dir={source.path}")
        elif source.provider == "main" and source.path != str(conf_dir()):
            words.append(f"--config-path={source.path}")
    if hydra.job.config_name != CONFIG_NAME:
        words.append(f"--config-name={hydra.job.config_name}")
    return (*words, *map(str, hydra.overrides.task))


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """Compose and check the configuration of overrides, outside a Hydra run.

    Raises:
        ConfigError: as ``check_overrides``, ``from_dict`` and ``validate`` do.
        hydra.errors.HydraException: an override that can't be composed.
    """
    from hydra import compose, initialize_config_dir

    check_overrides(overrides)
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), translate_hydra_errors():
        return to_run_config(compose(CONFIG_NAME, overrides=list(overrides)))


@contextmanager
def translate_hydra_errors() -> Iterator[None]:
    """Raise a ``ConfigError`` for Hydra's ``ValueError`` about a group's option that is not a name."""
    try:
        yield
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        raise ConfigError(f"a group has a value that is not the name of an option ({error}): see --help") from error


def expand_sweep(config: DictConfig) -> list[RunConfig]:
    """Compose and check every job of a sweep of Hydra's basic sweeper.

    Other sweepers choose values while they run: of those, check the configuration that jobs start from.

    Raises:
        ConfigError: of the first job that is invalid, or two jobs have the same folder.
        hydra.errors.HydraException: of the first job that can't be composed.
    """
    from hydra.core.global_hydra import GlobalHydra

    sweeper = config.hydra.sweeper
    if config.hydra.runtime.choices.get("hydra/sweeper") != "basic":
        return [to_run_config(config)]
    arguments = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    arguments += list(config.hydra.overrides.task)
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    jobs, numbers = [], dict[str, int]()
    for number, chosen in enumerate(BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]):
        job = loader.load_sweep_config(config, list(chosen))
        jobs.append(to_run_config(job))
        folder = _sweep_folder(job, number)
        if (other := numbers.setdefault(folder, number)) != number:
            raise ConfigError(
                f"hydra.sweep.subdir={folder} is the folder of both job {other} and job {number}: "
                "leave hydra.sweep.subdir out, or give it a part that differs, as in '${hydra.job.num}'"
            )
    if not jobs:
        raise ConfigError("the sweep has no jobs, as one of its keys has no value: see what is after -m")
    return jobs


def _sweep_folder(job: DictConfig, number: int) -> str:
    """Return the folder of a sweep's job, below that of the sweep."""
    with read_write(job), open_dict(job):
        job.hydra.job.num, job.hydra.job.id = number, str(number)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = job  # type: ignore[assignment]  # for ${hydra:job.num}
    try:
        return str(job.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = before


def format_hydra_error(error: BaseException) -> str:
    """Return Hydra's or OmegaConf's message about a configuration, without the lines that only its authors need.

    Messages are recognized by their text in Hydra 1.3.
    """
    if "hydra/sweeper/optuna" in str(error):
        return "experiment=tune needs Optuna: pip install 'vggish-runner[tune]'"
    if "hydra/launcher/submitit" in str(error):
        return "this launcher needs Submitit: pip install 'vggish-runner[slurm]'"
    if message := renamed_resolver(str(error)):
        return message
    lines = [line.rstrip() for line in without_credentials(str(error)).splitlines()]
    if lines and (ambiguous := re.fullmatch(r"Ambiguous value for argument '(.*)'", lines[0])):
        return several_values(ambiguous[1])
    if unknown := _NO_OPTION.search("\n".join(lines)):
        return f"{unknown[1]}={unknown[2]} is not an option: use one of {', '.join(unknown[3].split())}"
    if (no_group := _NO_GROUP.match(f"{' '.join(lines)} {error.__cause__}")) and no_group[1] in schemas():
        names = ", ".join(field.name for field in fields(schemas()[no_group[1]]))
        group = no_group[1]
        return f"{group}={no_group[2].strip()} is not an option: set a key, as {group}.KEY=VALUE with one of {names}"
    keys = [line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("full_key:")]
    if message := next(filter(None, map(renamed_key, keys)), None):
        return message
    unhelpful = ("full_key:", "object_type=", "Config search path", "provider=", "reference_type=", "To append")
    helpful = []
    for line in lines:
        if line.strip().startswith(unhelpful) or not line.strip():
            continue
        helpful.append(line.strip() if line.startswith("\t") else line)
    cause = error.__cause__
    if cause is not None and type(cause).__module__.startswith("omegaconf"):
        helpful += [line.strip() for line in str(cause).splitlines() if not line.strip().startswith(unhelpful)]
    text = " ".join(dict.fromkeys(helpful))
    return f"{keys[0]}: {text}" if keys and keys[0] not in text else text

"""``--help``, made from conf/ so that it can't go stale; imports nothing slow."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from runner.core.layout import FORMATS
from runner.core.paths import conf_dir

_INTRODUCTION = """\
vggish-runner embeds folders of audio with VGGish on the device of your choice, and logs settings, speed
and device to MLflow.

usage: python -m runner [GROUP=OPTION ...] [key=value ...]
       python -m runner -m GROUP=OPTION,OPTION ...          a sweep: every combination, one job each
"""

_KEYS = """\
Often set
  dataset.root=DIR                 the folder of recordings, or s3://… (unset: the demo clips)
  output.dir=DIR                   the folder of the run's files, or s3://… (unset: a new folder under outputs/)
  output.formats=[parquet,npz]     any of {formats}
  memory.batch_size=N|auto         examples in a batch (auto: measured); memory.decode_workers=N, memory.queue_depth=N
  device.index=N|all               one of several GPUs, or all; device.strict=true makes a missing device an error
  weights.path=FILE                the checkpoint, with weights=file
  frontend.short_clips=pad|skip    clips shorter than one example
  tracking.experiment=NAME         the MLflow experiment; tracking.log_embeddings=true uploads embeddings too
  paths.outputs=DIR                the folder of runs, sweeps and the MLflow database; paths.models=DIR of weights
"""

_EXAMPLES = """\
Examples
  python -m runner                                              the demo clips on the best device
  python -m runner dataset.root=/data/clips                     a folder of your own
  python -m runner device=metal memory=greedy dataset.root=/data/clips
  python -m runner dataset=manifest dataset.path=clips.csv weights=file weights.path=model.ckpt
  python -m runner dataset=webdataset dataset.path=s3://bucket/tars
  python -m runner -m device=cpu,gpu memory=conservative,greedy dataset.root=/data/clips
"""

_MORE = """\
Also
  --cfg job --resolve              print the composed configuration; --info defaults-tree: its sources
  -sc install=bash                 shell completion (also zsh, fish): eval "$(vggish-runner -sc install=bash)"
  --hydra-help                     Hydra's own options
  python -m runner COMMAND --help  other commands: {commands}
"""


def help_text(commands: list[str]) -> str:
    """Return the help: usage, the groups with their options, common keys, examples.

    Args:
        commands: names of the sub-commands.
    """
    more = _MORE.format(commands=", ".join(commands))
    keys = _KEYS.format(formats=", ".join(map(_format, FORMATS)))
    return "\n".join([_INTRODUCTION, _groups(conf_dir()), keys, _EXAMPLES, more]).rstrip()


def _format(name: str) -> str:
    needed = FORMATS[name].postprocess
    return f"{name} (with output.postprocess={needed})" if needed else name


def _groups(conf: Path) -> str:
    lines = ["Groups (* the default)"]
    for group, default in _defaults(conf).items():
        options = sorted(path.stem for path in (conf / group).glob("*.yaml"))
        lines.append(f"  {group}")
        for option in sorted(options, key=lambda option: option != default):
            mark = "*" if option == default else " "
            lines.append(f"   {mark} {option:<14} {_first_comment(conf / group / f'{option}.yaml')}")
    return "\n".join(lines) + "\n"


def _defaults(conf: Path) -> dict[str, str | None]:
    """Return the default option of each group, in the order of config.yaml; None for a group that has none."""
    entries = yaml.safe_load((conf / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    options = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    return {group: option for group, option in options.items() if not group.startswith("override ")}


def _first_comment(path: Path) -> str:
    comments = re.findall(r"^# (?!@package)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return str(comments[0])

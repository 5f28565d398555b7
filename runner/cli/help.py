"""``--help``, made from conf/ itself so that it can't go stale; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from runner.core.paths import conf_dir

_GROUPS = (
    "device",
    "memory",
    "precision",
    "model",
    "weights",
    "dataset",
    "frontend",
    "parity",
    "engine",
    "profile",
    "tracking",
    "experiment",
)

_INTRODUCTION = """\
vggish-runner embeds folders of audio with VGGish on the device of your choice, and logs what it did,
how fast, and on what, to MLflow.

usage: python -m runner [GROUP=OPTION ...] [key=value ...]
       python -m runner -m GROUP=OPTION,OPTION ...          a sweep: every combination, one job each
"""

_KEYS = """\
Often set
  dataset.root=DIR                 the folder of recordings, or s3://… (unset: the demo clips)
  output.dir=DIR                   where the run's files go, a folder or s3://… (unset: a new folder under outputs/)
  output.formats=[parquet,npz]     any of parquet (the default), npz, tfrecord (with output.postprocess=audioset)
  memory.batch_size=N|auto         examples a batch (auto: measured); memory.decode_workers=N, memory.queue_depth=N
  device.index=N|all               which of several GPUs; device.strict=true makes an absent device an error
  weights.path=FILE                the checkpoint, with weights=file
  frontend.short_clips=pad|skip    what becomes of clips too short for one example
  tracking.experiment=NAME         the MLflow experiment; tracking.log_embeddings=true to log them too
  paths.outputs=DIR                where runs, sweeps and the MLflow database live; paths.models=DIR likewise
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
  --cfg job --resolve              print the composed configuration; --info defaults-tree: how it was composed
  -sc install=bash                 shell completion (also zsh, fish): eval "$(vggish-runner -sc install=bash)"
  --hydra-help                     Hydra's own options
  python -m runner doctor          what this machine has, what is missing and how to mend it
  python -m runner track RUN_DIR   log a run to MLflow that could not be logged at the time
"""


def help_text() -> str:
    """The help: what it is, the groups with their options and what each does, examples."""
    return "\n".join([_INTRODUCTION, _groups(conf_dir()), _KEYS, _EXAMPLES, _MORE]).rstrip()


def _groups(conf: Path) -> str:
    defaults = _defaults(conf)
    lines = ["Groups (* the default)"]
    for group in _GROUPS:
        lines.append(f"  {group}")
        for path in sorted(
            (conf / group).glob("*.yaml"), key=lambda path: (path.stem != defaults.get(group), path.stem)
        ):
            mark = "*" if path.stem == defaults.get(group) else " "
            lines.append(f"   {mark} {path.stem:<14} {_first_comment(path)}")
    return "\n".join(lines) + "\n"


def _defaults(conf: Path) -> dict[str, str]:
    entries = [line.strip()[2:] for line in (conf / "config.yaml").read_text().splitlines() if line.startswith("  - ")]
    pairs = [entry.split(":") for entry in entries if ":" in entry and " " not in entry.split(":")[0]]
    return {group.strip(): option.strip() for group, option in pairs}


def _first_comment(path: Path) -> str:
    comments = (line[2:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next(comment for comment in comments if not comment.startswith("@package"))

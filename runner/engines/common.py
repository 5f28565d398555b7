"""The parts of a run that every engine makes alike from its spec: clips, decode options, metadata, the writer."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.dataset.clips import labels_of
from runner.devices.host import versions
from runner.output.writer import RunWriter, make_formats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.config.schema import RunConfig
    from runner.inference.builder import Placement
    from runner.inference.session import VGGishSession
    from runner.output.remote.writer import RemoteCommitter
    from runner.output.state.journal import ShardEntry
    from runner.output.writer import JournalLike

_SWITCH_S = 0.0005
"""A thread that has the interpreter gives it up after so long: replicas must not wait long for collector and
writers."""


def file_metadata(config: RunConfig, session: VGGishSession, placement: Placement) -> dict[str, str]:
    """What every file of a run says of itself: model, weights, front end, precision, device, versions; all strings.

    Args:
        config: the run's configuration.
        session: that embeds.
        placement: where it does so.
    """
    weights = session.metadata.weights
    return {
        "model": "VGGish",
        "weights.source": str(weights["source"]),
        "weights.checksum": str(weights["checksum"]),
        "weights.meaningless": str(weights["is_random"]).lower(),
        "hop_s": str(config.frontend.hop_s),
        "resampler": config.frontend.resampler,
        **{f"frontend.{key}": str(value) for key, value in asdict(config.frontend).items()},
        "postprocess": config.output.postprocess,
        "precision": placement.precision.effective,
        "device": placement.device.effective.value,
        "device.name": placement.device.device.name,
        "versions": json.dumps(versions()),
    }


def tune_interpreter() -> None:
    """Set this process's interpreter up for embedding, once all is made that it needs."""
    from threadpoolctl import threadpool_limits

    sys.setswitchinterval(_SWITCH_S)
    threadpool_limits(1, user_api="blas")  # sums of embeddings take a core, and none of TensorFlow's
    gc.freeze()  # TensorFlow's million objects are not looked through again while batches are in flight


def make_writer(
    spec: Mapping[str, Any],
    config: RunConfig,
    metadata: Mapping[str, str],
    postprocess: Callable[[NDArray[np.float32]], NDArray[Any]] | None,
    done: Mapping[int, ShardEntry] | None = None,
    *,
    journal: JournalLike | None = None,
    kind: Callable[..., RunWriter] = RunWriter,
) -> RunWriter:
    """The writer of a run's shards, in the formats asked for; see ``RunWriter``.

    Args:
        spec: the run's.
        config: its configuration.
        metadata: what its files say of themselves.
        postprocess: embeddings to their post-processed form; None for none.
        done: the shards that the journal has already.
        journal: where shards are noted; the run's own when None.
        kind: the writer's class, or what makes one.
    """
    run_dir = Path(spec["run_dir"])
    labels = (spec["dataset"].get("part") or {}).get("labels") or labels_of(Path(spec["manifest"]))
    formats = make_formats(config.output, run_dir, metadata, config.frontend.hop_s, labels, postprocess)
    return kind(run_dir, metadata, formats, done, journal=journal, rows=spec["rows"])


def _mirror(spec: dict[str, Any], config: RunConfig) -> RemoteCommitter | None:
    """What puts the run's files into an object store; None where they stay on a file system."""
    if "store" not in spec:
        return None
    from runner.output.remote.writer import RemoteCommitter

    return RemoteCommitter(spec, config)

"""What all engines have in common: their interface, the metadata of files, the writer."""

from __future__ import annotations

import functools
import gc
import json
import queue
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from runner.contract.result import RunStats, Startup
from runner.dataset.clips import ClipReader, labels_of
from runner.dataset.recorded_at import recorded_at_reader
from runner.devices.host import versions
from runner.output.formats import make_formats
from runner.output.rows import EmbeddingInfo
from runner.output.run_model import RunModel, check_outputs
from runner.output.writer import ShardFiles, ShardWriter
from runner.vggish.postprocess import pca_in_effect

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.config.schema import RunConfig
    from runner.contract.events import Events
    from runner.contract.result import Repeats, Status
    from runner.contract.spec import RunSpec
    from runner.core.model_spec import ModelSpec
    from runner.core.stop_signals import StopSignal
    from runner.dataset.clips import Clip
    from runner.inference.builder import Placement
    from runner.inference.session import EmbeddingSession
    from runner.output.remote.committer import RemoteCommitter
    from runner.output.state.journal import ShardEntry
    from runner.output.writer import CommitLog, Files
    from runner.vggish.postprocess import Postprocessor

_SWITCH_S = 0.0005
"""The interpreter's switch interval: replicas must not wait long for collector and writers."""

_GC_THRESHOLDS = 200_000, 50, 100
"""Objects between two collections of garbage: the pipeline makes no cycles, and at Python's own thresholds collections
took 16 % of the time of a run on an H200."""


def queued_clips(
    shards: queue.SimpleQueue[int | None], spec: RunSpec, on_begin: Callable[[int], None] = lambda shard: None
) -> Iterator[Clip | None]:
    """Yield the clips of the shards in a queue, up to the None in it; None while it is empty.

    Args:
        shards: the queue.
        spec: the run's.
        on_begin: called with each shard before its first clip.
    """
    reader = ClipReader(spec.manifest)
    while True:
        try:
            shard = shards.get_nowait()
        except queue.Empty:
            yield None
            continue
        if shard is None:
            return
        on_begin(shard)
        yield from reader.clips(*spec.shards[shard])


def file_metadata(config: RunConfig, session: EmbeddingSession, placement: Placement) -> dict[str, str]:
    """Describe a run's files: model, weights, front end, precision, device, versions; all strings.

    Args:
        config: the run's configuration.
        session: the one that embeds.
        placement: its device and precision.
    """
    weights = session.metadata.weights
    return {
        **RunModel.of(session.spec).to_metadata(),
        "weights.source": weights.source,
        "weights.checksum": str(weights.checksum),
        "weights.random": str(weights.is_random).lower(),
        "hop_s": str(config.frontend.hop_s),
        "resampler": config.frontend.resampler,
        **{f"frontend.{key}": str(value) for key, value in asdict(config.frontend).items()},
        "postprocess": config.output.postprocess,
        "precision": placement.precision.effective,
        "device": placement.device.effective.value,
        "device.name": placement.device.device.name,
        "versions": json.dumps(versions()),
    }


def identity_of(session: EmbeddingSession, postprocess: Postprocessor | None) -> dict[str, str]:
    """Return the weights, precision and, where embeddings are post-processed, PCA parameters in effect."""
    metadata = session.metadata
    return {
        "weights.checksum": str(metadata.weights.checksum),
        "precision": metadata.precision.effective,
        **pca_in_effect(postprocess),
    }


def tune_interpreter() -> None:
    """Tune this process's interpreter for embedding, once all long-lived objects are made."""
    from threadpoolctl import threadpool_limits

    sys.setswitchinterval(_SWITCH_S)
    threadpool_limits(1, user_api="blas")  # sums of embeddings take one core, and none of TensorFlow's
    gc.freeze()  # the collector skips TensorFlow's million objects while batches are in flight
    gc.set_threshold(*_GC_THRESHOLDS)


def shard_files(
    spec: RunSpec,
    model: ModelSpec,
    metadata: Mapping[str, str],
    postprocess: Callable[[NDArray[np.float32]], NDArray[Any]] | None,
) -> Callable[[], ShardFiles]:
    """Return what makes the writer of a run's files, in ``output.formats``; it can be pickled.

    Args:
        spec: the run's.
        model: as it is loaded.
        metadata: of every file.
        postprocess: the first output to its post-processed form; None for none.

    Raises:
        ConfigError: an output's name can't be a column.
    """
    config, partition = spec.config, spec.dataset.partition
    labels = (partition.labels if partition else None) or labels_of(spec.manifest)
    check_outputs(model.outputs)
    info = EmbeddingInfo(metadata, config.frontend.file_hop_s, model.outputs)
    arguments = (config.output, spec.run_dir, info, labels, postprocess)
    return functools.partial(_make_files, arguments, config.dataset.recorded_at)


def _make_files(arguments: tuple[Any, ...], recorded_at: str) -> ShardFiles:
    _, folder, info, *_ = arguments
    return ShardFiles(folder, info, make_formats(*arguments), recorded_at_reader(recorded_at))


def make_writer(
    spec: RunSpec,
    files: Files,
    commit_log: CommitLog,
    committed: Mapping[int, ShardEntry] | None = None,
    remote: RemoteCommitter | None = None,
) -> ShardWriter:
    """Make the writer of a run's shards; see ``ShardWriter``.

    Args:
        spec: the run's.
        files: writes a shard's files.
        commit_log: records each committed shard.
        committed: the shards that were committed before.
        remote: uploads each shard; None where the output is a folder.
    """
    if remote:
        remote.upload_metadata()
    return ShardWriter(files, commit_log, committed, spec.row_digests, remote)


def remote_committer(spec: RunSpec) -> RemoteCommitter | None:
    """Make the committer of an output in an object store; None where the output is a folder."""
    if spec.remote is None:
        return None
    from runner.output.remote.committer import RemoteCommitter

    return RemoteCommitter(spec)


class Engine(ABC):
    """Embeds what is left of a run.

    Args:
        spec: the run's.
        events: gets progress and warnings.
        stop: is set when the run is to end early.

    Attributes:
        startup: what was decided before the first clip, as far as the run has come, also where it fails.
        stats: what was embedded, likewise.
        repeats: its repeated passes, if there were any.
        metrics: all metrics so far.
    """

    def __init__(self, spec: RunSpec, events: Events, stop: StopSignal) -> None:
        self._spec, self._events, self._stop = spec, events, stop
        self.startup = Startup()
        self.stats = RunStats()
        self.repeats: Repeats | None = None
        self.metrics: dict[str, float] = {}

    @abstractmethod
    def run(self) -> Status:
        """Embed, and return how it ended; a failure is raised."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what lives longer than the run, after its result is written."""

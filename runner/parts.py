"""The parts of a run that every engine makes alike from its spec: clips, decode options, metadata, the writer."""

from __future__ import annotations

import gc
import itertools
import json
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config import RunConfig
from runner.decode import DecodeOptions
from runner.gathering import Clip
from runner.hardware import versions
from runner.journal import STATE, ShardEntry
from runner.output import JournalLike, RunWriter, make_formats
from runner.spill import Spill

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from runner.build import Placement
    from runner.vggish.session import VGGishSession

_MANIFEST_ROWS = 4096
_MANIFEST_COLUMNS = ("clip", "path", "start", "end", "label", "bytes")
"""The manifest's columns in the order of ``Clip``'s fields behind ``number``."""
_SWITCH_S = 0.0005
"""A thread that has the interpreter gives it up after so long: lanes must not wait long for collector and writers."""
_CLIPS_PER_DECODER = 16
"""A small data set gets fewer decode processes than planned: to start one takes as long as to decode several clips."""


def read_clips(path: Path, spans: Sequence[tuple[int, int]]) -> Iterator[Clip]:
    """The clips of these spans (first, one past the last), in order; of the manifest only what holds them is read."""
    reader = ClipReader(path)
    for first, end in spans:
        yield from reader.clips(first, end)


class ClipReader:
    """Reads clips of a manifest; the row group of the last ones is kept, as the next ones are mostly in it, too.

    Args:
        path: of the manifest.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        groups = range(self._file.num_row_groups)
        self._ends = list(itertools.accumulate(self._file.metadata.row_group(group).num_rows for group in groups))
        self._group: int | None = None
        self._rows: pa.Table = None

    def clips(self, first: int, end: int) -> Iterator[Clip]:
        """The clips from ``first`` up to, not including, ``end``."""
        while first < end:
            group = bisect_right(self._ends, first)
            begins, stop = self._ends[group - 1] if group else 0, min(end, self._ends[group], first + _MANIFEST_ROWS)
            if group != self._group:
                self._rows = self._file.read_row_group(group, columns=list(_MANIFEST_COLUMNS))
                self._group = group
            part = self._rows.slice(first - begins, stop - first)
            columns = (part.column(name).to_pylist() for name in _MANIFEST_COLUMNS)
            yield from itertools.starmap(Clip, zip(range(first, stop), *columns, strict=True))
            first = stop


def labels_of(path: Path) -> list[str]:
    """The data set's distinct labels."""
    import pyarrow.parquet as pq

    labels: list[str] = pq.read_table(path, columns=["label"])["label"].unique().drop_null().to_pylist()
    return labels


def decode_options(config: RunConfig) -> DecodeOptions:
    """What decode processes need to know of a run's configuration."""
    frontend = config.frontend
    return DecodeOptions(
        frontend.hop_s,
        frontend.short_clips,
        frontend.tail,
        frontend.resampler,
        config.dataset.on_truncated,
        config.dataset.max_clip_s,
        config.dataset.fetch_ahead,
        config.dataset.fetch_timeout_s,
    )


def decoders_for(planned: int, clips: int) -> int:
    """Decode processes for so many clips: those planned, or fewer."""
    return max(1, min(planned, -(-clips // _CLIPS_PER_DECODER)))


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
        "weights.meaningless": str(weights["meaningless"]).lower(),
        "hop_s": str(config.frontend.hop_s),
        "resampler": config.frontend.resampler,
        "postprocess": config.output.postprocess,
        "precision": placement.precision.effective,
        "device": placement.device.effective.value,
        "device.name": placement.device.device.name,
        "versions": json.dumps(versions()),
    }


def favour_lanes() -> None:
    """Set this process's interpreter up for embedding, once all is made that it needs."""
    sys.setswitchinterval(_SWITCH_S)
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


def make_spill(run_dir: Path, config: RunConfig) -> Spill:
    """What keeps a run's embeddings until their shard is written."""
    return Spill(run_dir / STATE, config.memory.embeddings_mib)

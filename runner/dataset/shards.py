"""Plans the shards of a data set."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from runner.core.span import Span
from runner.dataset.table import CHUNK_CLIPS

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

_MIN_CLIPS, _MAX_CLIPS, _SHARDS = 64, 8192, 256

_MAX_BYTES = 128 << 20
"""Bytes of the embeddings of a shard by ``max_durations_s``: they bound the work that a kill costs."""

_ASSUMED_WIDTH = 1024
"""Values of a row, where only the model's file knows them."""

_MIN_BYTES_PER_S_PCM = 16_000
"""Least bytes of a second in formats of samples: 16 bits at 8 kHz."""

_MIN_BYTES_PER_S_CODED = 4_000
"""Least bytes of a second in other formats: speech at 32 kbit/s."""

_PCM_SUFFIXES = (".wav", ".wave", ".w64", ".rf64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".flac")


def shards_of(table: pa.Table, config: RunConfig) -> list[Span]:
    """Plan the shards of a run's table of clips; see ``plan_shards``."""
    return plan_shards(table.num_rows, config.output.clips_per_shard, max_durations_s(table), max_shard_s(config))


def max_shard_s(config: RunConfig) -> float:
    """Return the most audio of a shard of more than one clip, in seconds of the files: that of ``_MAX_BYTES``."""
    return _MAX_BYTES // (4 * (config.model.spec.width or _ASSUMED_WIDTH)) * config.frontend.file_hop_s


def plan_shards(
    n_clips: int,
    clips_per_shard: int | None,
    durations_s: NDArray[np.float64] | None = None,
    max_shard_s: float = math.inf,
) -> list[Span]:
    """Return the clips in each shard: about 256 shards of 64 to 8,192 clips, of fewer where clips are long.

    Args:
        n_clips: the number of clips.
        clips_per_shard: clips in each shard, however long they are; None for the default above.
        durations_s: the greatest duration of each clip, float64 [n_clips]; see ``max_durations_s``.
        max_shard_s: the most audio of a shard of more than one clip, in seconds.
    """
    size = clips_per_shard or min(_MAX_CLIPS, max(_MIN_CLIPS, -(-n_clips // _SHARDS)))
    if clips_per_shard or durations_s is None:
        return [Span(first, min(first + size, n_clips)) for first in range(0, n_clips, size)]
    ends_s = np.cumsum(durations_s)
    shards = []
    first = 0
    while first < n_clips:
        start_s = ends_s[first - 1] if first else 0.0
        end = int(np.searchsorted(ends_s, start_s + max_shard_s, side="right"))
        end = max(first + 1, min(end, first + size, n_clips))
        shards.append(Span(first, end))
        first = end
    return shards


def max_durations_s(table: pa.Table) -> NDArray[np.float64]:
    """Return the greatest duration of each clip: by its range, or its file's size and the least bytes of a second.

    Args:
        table: clips as in ``Manifest``.

    Returns:
        Seconds, float64 [clips]; 0 where nothing is known.
    """
    is_pcm_name = rf"({'|'.join(map(re.escape, _PCM_SUFFIXES))})$"
    durations = np.zeros(table.num_rows)
    first = 0
    for batch in table.select(["path", "start", "end", "bytes"]).to_batches(CHUNK_CLIPS):
        is_pcm = pc.match_substring_regex(batch["path"], is_pcm_name, ignore_case=True).to_numpy(zero_copy_only=False)
        size, start = batch["bytes"].to_numpy(), pc.fill_null(batch["start"], 0.0).to_numpy()
        file_s = np.where(size < 0, np.inf, size / np.where(is_pcm, _MIN_BYTES_PER_S_PCM, _MIN_BYTES_PER_S_CODED))
        end = np.minimum(pc.fill_null(batch["end"], np.inf).to_numpy(), file_s)
        durations[first : first + len(end)] = np.where(np.isfinite(end), np.maximum(end - start, 0.0), 0.0)
        first += len(end)
    return durations

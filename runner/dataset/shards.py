"""Plans the shards of a data set."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from runner.core.span import Span
from runner.dataset.table import CHUNK_CLIPS
from runner.vggish.constants import EXAMPLE_HOP_S

_MIN_CLIPS, _MAX_CLIPS, _SHARDS = 64, 8192, 256

_MAX_EXAMPLES = 1 << 18
"""Examples of a shard by ``max_durations_s``: 128 MiB of embeddings, and the work that a kill costs at most."""

_MIN_BYTES_PER_S_PCM = 16_000
"""Least bytes of a second in formats of samples: 16 bits at 8 kHz."""

_MIN_BYTES_PER_S_CODED = 4_000
"""Least bytes of a second in other formats: speech at 32 kbit/s."""

_PCM_SUFFIXES = (".wav", ".wave", ".w64", ".rf64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".flac")


def shards_of(table: pa.Table, clips_per_shard: int | None, hop_s: float) -> list[Span]:
    """Plan the shards of a table of clips; see ``plan_shards``."""
    return plan_shards(table.num_rows, clips_per_shard, max_durations_s(table), hop_s)


def plan_shards(
    n_clips: int,
    clips_per_shard: int | None,
    durations_s: NDArray[np.float64] | None = None,
    hop_s: float = EXAMPLE_HOP_S,
) -> list[Span]:
    """Return the clips in each shard: about 256 shards of 64 to 8,192 clips, of fewer where clips are long.

    Args:
        n_clips: the number of clips.
        clips_per_shard: clips in each shard, however long they are; None for the default above.
        durations_s: the greatest duration of each clip, float64 [n_clips]; see ``max_durations_s``.
        hop_s: seconds between examples.
    """
    size = clips_per_shard or min(_MAX_CLIPS, max(_MIN_CLIPS, -(-n_clips // _SHARDS)))
    if clips_per_shard or durations_s is None:
        return [Span(first, min(first + size, n_clips)) for first in range(0, n_clips, size)]
    ends_s = np.cumsum(durations_s)
    shards = []
    first = 0
    while first < n_clips:
        start_s = ends_s[first - 1] if first else 0.0
        end = int(np.searchsorted(ends_s, start_s + _MAX_EXAMPLES * hop_s, side="right"))
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

"""Plans the shards of a data set."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from runner.dataset.table import CHUNK_CLIPS
from runner.vggish.constants import EXAMPLE_HOP_S

_FEWEST_CLIPS, _MOST_CLIPS, _SHARDS = 64, 8192, 256

_MOST_EXAMPLES = 1 << 18
"""Examples of a shard by ``longest_seconds``: 128 MiB of embeddings, and what a kill costs at most."""

_LEAST_BYTES_A_S = (16_000, 4_000)
"""What a second takes at least in formats of samples (16 bits at 8 kHz), and in others (speech at 32 kbit/s)."""

_PCM = (".wav", ".wave", ".w64", ".rf64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".flac")

_AMBIGUOUS = re.compile(rb"\\(?=x(?:5c|[89a-f][0-9a-f]))")


def shards_of(table: pa.Table, clips_per_shard: int | None, hop_s: float) -> list[tuple[int, int]]:
    """The shards of a table of clips; see ``plan_shards``."""
    return plan_shards(table.num_rows, clips_per_shard, longest_seconds(table), hop_s)


def plan_shards(
    n_clips: int,
    clips_per_shard: int | None,
    seconds: NDArray[np.float64] | None = None,
    hop_s: float = EXAMPLE_HOP_S,
) -> list[tuple[int, int]]:
    """(first clip, one past the last) of each shard: about 256 shards of 64 to 8,192 clips, fewer of long ones.

    Args:
        n_clips: how many there are.
        clips_per_shard: the clips of a shard, however long they are; None: as above.
        seconds: how long each may be, [n_clips]; see ``longest_seconds``.
        hop_s: seconds between examples.
    """
    size = clips_per_shard or min(_MOST_CLIPS, max(_FEWEST_CLIPS, -(-n_clips // _SHARDS)))
    if clips_per_shard or seconds is None:
        return [(first, min(first + size, n_clips)) for first in range(0, n_clips, size)]
    ends = np.cumsum(seconds)
    shards = []
    first = 0
    while first < n_clips:
        before = ends[first - 1] if first else 0.0
        end = int(np.searchsorted(ends, before + _MOST_EXAMPLES * hop_s, side="right"))
        shards.append((first, first := max(first + 1, min(end, first + size, n_clips))))
    return shards


def longest_seconds(table: pa.Table) -> NDArray[np.float64]:
    """How long each clip may be, by its range, or by its file's size and what a second of its format takes at least.

    Args:
        table: clips as in ``Manifest``.

    Returns:
        Seconds, float64 [clips]; 0 where nothing is known.
    """
    suffix = rf"({'|'.join(map(re.escape, _PCM))})$"
    found = np.zeros(table.num_rows)
    first = 0
    for batch in table.select(["path", "start", "end", "bytes"]).to_batches(CHUNK_CLIPS):
        is_pcm = pc.match_substring_regex(batch["path"], suffix, ignore_case=True).to_numpy(zero_copy_only=False)
        size, start = batch["bytes"].to_numpy(), pc.fill_null(batch["start"], 0.0).to_numpy()
        of_file = np.where(size < 0, np.inf, size / np.where(is_pcm, *_LEAST_BYTES_A_S))
        end = np.minimum(pc.fill_null(batch["end"], np.inf).to_numpy(), of_file)
        found[first : first + len(end)] = np.where(np.isfinite(end), np.maximum(end - start, 0.0), 0.0)
        first += len(end)
    return found

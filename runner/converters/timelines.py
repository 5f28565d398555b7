"""A run as timelines: stretches of each recording with a label, for Raven and Audacity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.core.errors import RunnerError
from runner.core.files import write_atomic
from runner.dataset.clip_names import split_range
from runner.evaluation.selections import Selection, audacity_tracks, raven_table
from runner.output.npz import npz_path
from runner.vggish.constants import EXAMPLE_SAMPLES, SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output.reader import EmbeddedClip, EmbeddingReader

_FIT_EXAMPLES = 100_000
"""Examples that clusters are fitted on, spread over the run."""

EXAMPLE_S = EXAMPLE_SAMPLES / SAMPLE_RATE


def export_timelines(reader: EmbeddingReader, folder: Path, program: str, clusters: int | None = None) -> int:
    """Write a table for each recording; return how many.

    Consecutive examples of the same label are one stretch.

    Args:
        reader: of the run.
        folder: where the tables go, at the recordings' own paths.
        program: ``raven`` or ``audacity``.
        clusters: label examples by this many k-means clusters of the run; None for the clips' own labels.

    Raises:
        RunnerError: the clips have no labels and no clusters were asked for, or scikit-learn is not installed.
    """
    label = _own_label if clusters is None else cluster_labels(reader, clusters)
    root = reader.dataset_root() if program == "raven" else ""
    written: set[Path] = set()
    for recording, selections in _recordings(reader, label):
        path = npz_path(recording).with_suffix("")
        if program == "raven":
            path = folder / path.with_name(f"{path.name}.selections.txt")
            text = raven_table(selections, root)
        else:
            path = folder / path.with_name(f"{path.name}.txt")
            text = audacity_tracks(selections)[recording]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
        written.add(path)
    if not written:
        raise RunnerError(f"the clips of {reader.location} have no labels: give --clusters to label them by sound")
    return len(written)


def cluster_labels(reader: EmbeddingReader, clusters: int) -> Callable[[EmbeddedClip], Sequence[str | None]]:
    """Fit k-means to at most 100,000 examples; return the function that labels a clip's examples with it."""
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise RunnerError("--clusters needs scikit-learn: pip install 'vggish-runner[evaluate]'") from error
    every = max(1, -(-len(reader) // _FIT_EXAMPLES))
    sample = np.concatenate([block.embeddings[-block.first % every :: every] for block in reader.blocks(())])
    if len(sample) < clusters:
        raise RunnerError(f"--clusters {clusters} are more than the {len(sample)} examples of {reader.location}")
    model = MiniBatchKMeans(clusters, random_state=0, n_init=3).fit(sample)
    return lambda clip: [f"cluster {number + 1}" for number in model.predict(clip.embeddings)]


def stretches(
    clip: str, starts_s: NDArray[np.float64], labels: Sequence[str | None], example_s: float = EXAMPLE_S
) -> list[Selection]:
    """Join a clip's consecutive examples of the same label; those without one are left out."""
    selections: list[Selection] = []
    for row, (start, label) in enumerate(zip(starts_s.tolist(), labels, strict=True)):
        if label is None:
            continue
        if row and labels[row - 1] == label:
            selections[-1] = Selection(clip, selections[-1].start_s, start + example_s, label)
        else:
            selections.append(Selection(clip, start, start + example_s, label))
    return selections


def _own_label(clip: EmbeddedClip) -> Sequence[str | None]:
    return [clip.label] * len(clip.embeddings)


def _recordings(
    reader: EmbeddingReader, label: Callable[[EmbeddedClip], Sequence[str | None]]
) -> Iterator[tuple[str, list[Selection]]]:
    """Yield each recording with its stretches, those of several clips together where these follow one another."""
    current, selections = "", list[Selection]()
    for clip in reader.clips():
        recording, _, _ = split_range(clip.name)
        if recording != current and selections:
            yield current, selections
            selections = []
        current = recording
        selections += stretches(recording, clip.starts_s, label(clip), reader.example_s)
    if selections:
        yield current, selections

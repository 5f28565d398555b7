"""A run as timelines: stretches of each recording with a label, for Raven and Audacity."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from runner.core.errors import RunnerError
from runner.core.files import write_atomic
from runner.dataset.clip_names import split_range
from runner.evaluation.selections import Selection, audacity_tracks, raven_table
from runner.output.npz import npz_path
from runner.output.top_classes import scored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.core.model_spec import Output
    from runner.output.reader import EmbeddedClip, EmbeddingReader

_FIT_EXAMPLES = 100_000
"""Examples that clusters are fitted on, spread over the run."""

Track: TypeAlias = "Sequence[str | None]"
"""The label of each example of a clip."""


@dataclass(frozen=True)
class Classes:
    """Labels by the model's class scores: of each example its best class, or all of at least ``score``."""

    score: float | None = None


def export_timelines(reader: EmbeddingReader, folder: Path, program: str, labels: int | Classes | None = None) -> int:
    """Write a table for each recording; return how many.

    Consecutive examples of the same label are one stretch.

    Args:
        reader: of the run.
        folder: where the tables go, at the recordings' own paths.
        program: ``raven`` or ``audacity``.
        labels: of examples: a number of k-means clusters of the run, its classes, or None for the clips' own labels.

    Raises:
        RunnerError: the clips have no labels and nothing else was asked for, the model has no classes, or scikit-learn
            is not installed.
    """
    output = reader.output
    tracks: Callable[[EmbeddedClip], list[Track]] = _own_labels
    if isinstance(labels, Classes):
        output = _scored_output(reader)
        tracks = partial(class_tracks, output.classes, labels.score)
    elif labels is not None:
        tracks = cluster_labels(reader, labels)
    root = reader.dataset_root() if program == "raven" else ""
    written: set[Path] = set()
    for recording, selections in _recordings(reader, output.name, tracks):
        path = npz_path(recording).with_suffix("")
        if program == "raven":
            path = folder / path.with_name(f"{path.name}.selections.txt")
            text = raven_table(selections, root, reader.model.sample_rate // 2)
        else:
            path = folder / path.with_name(f"{path.name}.txt")
            text = audacity_tracks(selections)[recording]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
        written.add(path)
    if not written:
        if isinstance(labels, Classes):
            raise RunnerError(f"no example of {reader.location} has a class of that score: give --classes a lower one")
        or_classes = ", or --classes" if scored(reader.model.outputs) else ""
        raise RunnerError(
            f"the clips of {reader.location} have no labels: give --clusters to label them by sound{or_classes}"
        )
    return len(written)


def _scored_output(reader: EmbeddingReader) -> Output:
    """Return the output of the classes: the reader's own, otherwise the first with any."""
    if (output := reader.output if reader.output.classes else scored(reader.model.outputs)) is None:
        raise RunnerError(f"{reader.model.title}, the model of {reader.location}, has no classes: give --clusters")
    return output


def class_tracks(classes: Sequence[str], score: float | None, clip: EmbeddedClip) -> list[Track]:
    """Return the labels of a clip's examples, whose scores are its ``embeddings``.

    Args:
        classes: names, of each score.
        score: for a track for each class with so high a score; None for one of the best classes.
        clip: float32 [n, classes].
    """
    if score is None:
        return [[classes[best] for best in clip.embeddings.argmax(axis=1).tolist()]]
    is_heard = clip.embeddings >= score
    return [
        [name if is_so else None for is_so in own]
        for name, own in zip(classes, is_heard.T.tolist(), strict=True)
        if any(own)
    ]


def cluster_labels(reader: EmbeddingReader, clusters: int) -> Callable[[EmbeddedClip], list[Track]]:
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
    return lambda clip: [[f"cluster {number + 1}" for number in model.predict(clip.embeddings)]]


def stretches(clip: str, starts_s: NDArray[np.float64], labels: Track, example_s: float) -> list[Selection]:
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


def _own_labels(clip: EmbeddedClip) -> list[Track]:
    return [[clip.label] * len(clip.embeddings)]


def _recordings(
    reader: EmbeddingReader, column: str, tracks: Callable[[EmbeddedClip], list[Track]]
) -> Iterator[tuple[str, list[Selection]]]:
    """Yield each recording with its stretches, those of several clips together where these follow one another."""
    current, selections = "", list[Selection]()
    for clip in reader.clips(column):
        recording, _, _ = split_range(clip.name)
        if recording != current and selections:
            yield current, selections
            selections = []
        current = recording
        own = [stretches(recording, clip.starts_s, track, reader.example_s) for track in tracks(clip)]
        selections += sorted(itertools.chain(*own), key=lambda selection: selection.start_s)
    if selections:
        yield current, selections

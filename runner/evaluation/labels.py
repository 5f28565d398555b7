"""Which labels a clip's windows have, which recording (or other group) a clip is of, and in which fold it was put."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from runner.core.errors import EvaluationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.config.groups.evaluate import EvaluateConfig
    from runner.evaluation.annotations import Annotation, Annotations

_PART_OF_FILE = re.compile(r"#t=[0-9.e+-]*,[0-9.e+-]*$")
"""The end of a clip's name that is a part of a file, as a manifest's rows with start or end have it."""

_SUFFIX = re.compile(r"\.[A-Za-z]\w{1,4}$")
"""That of an audio file, unlike the numbers at the end of 2024.05.01."""


class ClipLabels(NamedTuple):
    """A clip's group (clips of one are never on both sides of a fold), its given fold, the labels of each window."""

    group: str
    fold: str | None
    windows: Sequence[frozenset[str]]


class Labels(Protocol):
    """A source of labels."""

    are_timed: bool
    """Whether windows of one clip may differ."""

    def of(self, clip: str, own: str | None, starts: NDArray[np.float64], window_s: float) -> ClipLabels | None:
        """Return the labels of a clip's windows; None if nothing is known of the clip.

        Args:
            clip: its name.
            own: its label in the run.
            starts: float64 [n], where in the recording each window starts, in seconds, ascending.
            window_s: a window's length.
        """
        ...

    def check(self) -> None:
        """Raise EvaluationError if labels were found for no clip."""
        ...


def recording_of(clip: str) -> str:
    """Return the name of a clip's file: all rows of a manifest that are of one file share it."""
    return _PART_OF_FILE.sub("", clip)


class _Grouping:
    """The group of a clip: its recording, or the part of its name that a pattern takes out."""

    def __init__(self, pattern: str | None) -> None:
        try:
            self._pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise EvaluationError(
                f"evaluate.group_pattern={pattern} is no regular expression ({error}): correct it"
            ) from error
        if self._pattern and not self._pattern.groups:
            raise EvaluationError(f"evaluate.group_pattern={pattern} has no group: put ( ) around the name in it")

    def of(self, clip: str) -> str:
        recording = recording_of(clip)
        if self._pattern is None:
            return recording
        if match := self._pattern.search(recording):
            return match.group(1) or ""
        raise EvaluationError(f"evaluate.group_pattern={self._pattern.pattern} does not match {recording}: correct it")


class RunLabels:
    """The labels that the run has itself: of folders, of the manifest's column, of containers."""

    are_timed = False

    def __init__(self, pattern: str | None = None) -> None:
        self._grouping = _Grouping(pattern)
        self._has_labels = False

    def of(self, clip: str, own: str | None, starts: NDArray[np.float64], window_s: float) -> ClipLabels | None:
        """Return the run's own label for every window."""
        if own is None:
            return None
        self._has_labels = True
        return ClipLabels(self._grouping.of(clip), None, [frozenset((own,))] * len(starts))

    def check(self) -> None:
        """Raise EvaluationError if no clip has a label."""
        if not self._has_labels:
            raise EvaluationError(
                "no embedded clip has a label: put the clips into a folder a label, or name a file of labels with "
                "evaluate.labels"
            )


class FileLabels:
    """The labels of annotation files, matched to recordings by the end of their paths, with or without the suffix.

    Args:
        annotations: as read.
        config: of evaluate.
    """

    def __init__(self, annotations: Annotations, config: EvaluateConfig) -> None:
        self.are_timed = annotations.are_timed
        self._config = config
        self._grouping = _Grouping(config.group_pattern)
        self._rows: dict[str, list[Annotation]] = {name: [] for name in annotations.recordings}
        for row in annotations.rows:
            self._rows.setdefault(row.recording, []).append(row)
        self._by_stem: dict[str, list[str]] = {}
        for name in self._rows:
            self._by_stem.setdefault(_parts(name)[-1], []).append(name)
            self._by_stem.setdefault(_without_suffix(_parts(name))[-1], []).append(name)
        self._claimed: dict[str, str] = {}

    def of(self, clip: str, own: str | None, starts: NDArray[np.float64], window_s: float) -> ClipLabels | None:
        """Return for each window the labels that overlap it long enough; None if the files don't name the recording."""
        name = self._name_of(clip)
        if name is None:
            return None
        rows = self._rows[name]
        folds, groups = ({getattr(row, key) for row in rows} for key in ("fold", "group"))
        for key, values in (("fold", folds), ("group", groups)):
            if len(values) > 1:
                listed = ", ".join(sorted(map(str, values)))
                raise EvaluationError(f"{name} has several values of the column of its {key} ({listed}): give it one")
        group = next(iter(groups), None) or self._grouping.of(clip)
        return ClipLabels(group, next(iter(folds), None), self._overlapping(rows, starts, window_s))

    def check(self) -> None:
        """Raise EvaluationError if the files name none of the run's recordings."""
        if not self._claimed:
            names = ", ".join(list(self._rows)[:3])
            raise EvaluationError(
                f"{self._config.labels} names none of the run's recordings (it names {names}): the ends of their paths "
                "must be the same"
            )

    def _overlapping(
        self, rows: Sequence[Annotation], starts: NDArray[np.float64], window_s: float
    ) -> list[frozenset[str]]:
        ends = starts + window_s
        labels: list[set[str]] = [set() for _ in starts]
        for row in rows:
            first, last = np.searchsorted(ends, row.start_s, "right"), np.searchsorted(starts, row.end_s, "right")
            for window in range(int(first), int(last)):
                shared = min(ends[window], row.end_s) - max(starts[window], row.start_s)
                if shared >= min(self._config.min_overlap_s, row.end_s - row.start_s):
                    labels[window].add(row.label)
        return [frozenset(names) for names in labels]

    def _name_of(self, clip: str) -> str | None:
        """The name that the files have for a clip's recording: the clip's own, or one that ends or begins alike.

        Raises:
            EvaluationError: there are several, or two recordings are meant by one name.
        """
        if clip in self._rows:  # also a part of a file that is named with its times
            self._claimed[clip] = recording_of(clip)
            return clip
        recording = recording_of(clip)
        own = _parts(recording)
        candidates = {*self._by_stem.get(own[-1], ()), *self._by_stem.get(_without_suffix(own)[-1], ())}
        lengths = {name: length for name in candidates if (length := _shared_end(own, _parts(name)))}
        longest = [name for name in lengths if lengths[name] == max(lengths.values())]
        if not longest:
            return None
        if len(longest) > 1:
            raise EvaluationError(
                f"{recording} may be {' or '.join(sorted(longest)[:2])} of the labels: name it in full"
            )
        name: str = longest[0]
        if self._claimed.setdefault(name, recording) != recording:
            raise EvaluationError(
                f"{name} of the labels may be {self._claimed[name]} or {recording}: name the recording with its folder"
            )
        return name


def _parts(name: str) -> tuple[str, ...]:
    """A path's parts, whichever system it was written on."""
    path = PureWindowsPath(name) if "\\" in name else PurePosixPath(name)
    return tuple(part for part in path.parts if part != path.anchor)


def _without_suffix(parts: tuple[str, ...]) -> tuple[str, ...]:
    return (*parts[:-1], _SUFFIX.sub("", parts[-1]))


def _shared_end(own: tuple[str, ...], other: tuple[str, ...]) -> float:
    """How many parts the shorter path has, if the longer ends in them; half less if their suffixes differ; else 0."""
    length = min(len(own), len(other))
    if own[-length:] == other[-length:]:
        return length
    alike = _without_suffix(own)[-length:] in (other[-length:], _without_suffix(other)[-length:])
    return length - 0.5 if alike else 0

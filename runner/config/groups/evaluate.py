"""``evaluate=``: the quality of a run's embeddings, by labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from runner.config.checks import at_least, one_of
from runner.core.errors import ConfigError
from runner.core.paths import as_path

TASKS = ("probe", "knn", "cluster", "retrieval")
"""Tasks, in the order in which they are carried out."""

UNITS = ("auto", "clip", "window")

_MINIMUM = {"folds": 2, "neighbors": 1, "few_shot_samples": 0, "experiments": 1, "max_rows": 10, "seed": 0}


@dataclass
class EvaluateConfig:
    """Tasks that say how well the embeddings classify, cluster and retrieve; they come after the run."""

    tasks: list[str] = field(default_factory=list)
    """Any of probe, knn, cluster, retrieval; an option of the group is a name for such a list."""

    labels: str | None = None
    """Label file, or folder of them: CSV, TSV, Parquet, Raven selection tables, Audacity label tracks; null: the labels
    of the run itself."""

    model_output: str | None = None
    """Output of the model that is evaluated; null: the first, which is the embedding."""

    label_column: str | None = None
    """Its column of labels; null: the first of the usual names (label, Annotation, Species, category, ...)."""

    fold_column: str | None = None
    """Its column of given folds; null: folds are drawn."""

    group_column: str | None = None
    """Its column of groups, whose members are never on both sides of a fold; null: by ``group_pattern``."""

    group_pattern: str | None = None
    """Regular expression over a clip's name whose first group names the group; null: the recording is the group."""

    min_overlap_s: float = 0.1
    """Seconds that an annotation and a window share at least for the window to have its label."""

    unit: str = "auto"
    """A row is a clip (the mean of its windows) or a window; auto: window where labels have times, else clip."""

    folds: int = 5
    """Folds of the cross-validation, where none are given."""

    neighbors: int = 15
    """k of the nearest neighbors."""

    few_shot_samples: int = 8
    """Rows a label from which the few-shot probe learns; 0: no such probe."""

    experiments: int = 10
    """Draws of the few-shot probe, and starts of k-means."""

    max_rows: int = 10_000
    """Clips or windows; of more a sample is drawn."""

    seed: int = 0
    """Seed of all that is drawn."""

    def __post_init__(self) -> None:
        for task in self.tasks:
            one_of("evaluate.tasks", task, TASKS)
        one_of("evaluate.unit", self.unit, UNITS)
        for name, minimum in _MINIMUM.items():
            at_least(f"evaluate.{name}", getattr(self, name), minimum)
        at_least("evaluate.min_overlap_s", self.min_overlap_s, 0)
        if self.labels is None and (column := self.label_column or self.fold_column or self.group_column):
            raise ConfigError(f"evaluate has a column {column} and no file that has it: give evaluate.labels")


def check_evaluation(config: EvaluateConfig) -> None:
    """Check that the label files are there, and scikit-learn where there is something to do.

    Raises:
        ConfigError: naming what is missing.
    """
    if config.labels is not None and not Path(as_path(config.labels)).expanduser().exists():
        raise ConfigError(f"evaluate.labels={config.labels} does not exist: give a label file or a folder of them")
    if config.tasks:
        try:
            import sklearn  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"evaluate needs scikit-learn ({error}): pip install 'vggish-runner[evaluate]'"
            ) from error

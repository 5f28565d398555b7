"""A run's outcome: the types of result.json, which the worker writes first and the command completes.

``WorkerResult`` is the worker's, ``RunResult`` the command's, with all that reports, plots and MLflow need.  In the
file both are one flat object; ``runner.contract.files`` reads and writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from runner.config.schema import RunConfig, ToleranceConfig
from runner.contract.spec import DatasetSummary
from runner.contract.sweep import SweepFad
from runner.core.failures import Failure
from runner.devices.detection import GpuDetails

if TYPE_CHECKING:
    from runner.devices.selection import DeviceChoice
    from runner.weights.selection import WeightsChoice

Status = Literal["finished", "failed", "interrupted"]
"""How a run ended; ``interrupted`` is one that its user stopped."""

Scalar = str | int | float | bool | None

Points = Sequence[Mapping[str, float]]
"""Rows of a series, each with the same names: see docs/reference/metrics.md."""


@dataclass(frozen=True)
class Effect:
    """An alternative that took effect, and why."""

    effective: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """A choice between alternatives: requested, in effect, and why."""

    requested: str
    effective: str
    reason: str


@dataclass(frozen=True)
class ConsideredDevice:
    """A device, or a kind of device that is absent; ``details`` are a GPU's."""

    type: str
    available: bool
    name: str
    reason: str
    details: GpuDetails | None = None


@dataclass(frozen=True)
class DeviceReport:
    """The device of a run; ``count`` devices of the kind from number ``index`` on, ``considered`` all that there are.

    ``fallback_reason`` is set where the device asked for was absent; ``details`` are a GPU's.
    """

    requested: str
    effective: str
    name: str
    index: int
    count: int
    reason: str
    fallback_reason: str | None = None
    details: GpuDetails | None = None
    considered: tuple[ConsideredDevice, ...] = ()

    @classmethod
    def of(cls, choice: DeviceChoice) -> DeviceReport:
        """Describe a choice."""
        considered = (
            ConsideredDevice(info.type.value, info.available, info.name, info.reason, info.details)
            for info in choice.considered
        )
        return cls(
            requested=choice.requested.value,
            effective=choice.effective.value,
            name=choice.device.name,
            index=choice.index,
            count=len(choice.indices),
            reason=choice.reason,
            fallback_reason=choice.fallback_reason,
            details=choice.device.details,
            considered=tuple(considered),
        )

    @property
    def label(self) -> str:
        """Kind and name: ``gpu (NVIDIA H200)``."""
        return f"{self.effective} ({self.name})"


@dataclass(frozen=True)
class ModelReport:
    """The model, and how it is computed: algorithm, where there are several, compiler, and how batches get to the
    device; ``outputs`` are widths by name."""

    conv: Decision | None
    compiler: Effect
    copies: Effect
    title: str = ""
    outputs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightsReport:
    """The weights of a run; ``checksum`` and ``smoke`` (the smoke test's statistics) are None until they are loaded."""

    requested: str
    source: str
    path: str | None
    seed: int | None
    reason: str
    is_random: bool
    checksum: str | None = None
    smoke: Mapping[str, float] | None = None

    @classmethod
    def of(cls, choice: WeightsChoice) -> WeightsReport:
        """Describe a choice that is not loaded yet."""
        return cls(choice.requested, choice.source, choice.path, choice.seed, choice.reason, choice.is_random)


@dataclass(frozen=True)
class ParityReport:
    """The parity gate's verdict; its measures are among the metrics, ``parity_…``.

    ``misses`` names each measure out of ``tolerance``; ``action`` is the option of ``parity``; ``dtypes`` are those of
    the windows that were measured; ``measured_by`` is host:pid.
    """

    passed: bool
    misses: tuple[str, ...]
    action: str
    tolerance: ToleranceConfig
    dtypes: tuple[str, ...]
    reference: str
    measured_by: str


@dataclass(frozen=True)
class BatchSizePoint:
    """One batch size: speed of the model alone, peak of its tensors in MiB (None: not known), seconds of compiling."""

    batch_size: int
    examples_per_s: float
    memory_mib: float | None
    compile_s: float = 0.0


@dataclass(frozen=True)
class BatchSizeCurve:
    """Speed over batch sizes; ``batch_size`` is in use, for ``reason``.

    Of the search of ``memory.batch_size=auto`` also the load by other programs, 0 to 1, and when it was measured, in
    seconds since the epoch.
    """

    steps: tuple[BatchSizePoint, ...]
    batch_size: int
    reason: str
    background_cpu_share: float | None = None
    measured_at: float | None = None


@dataclass(frozen=True)
class Startup:
    """The decisions before the first clip; of a startup that failed, as far as it came.

    ``resolved`` holds the values of ``auto`` keys and the like that took effect.
    """

    device: DeviceReport | None = None
    precision: Decision | None = None
    model: ModelReport | None = None
    weights: WeightsReport | None = None
    parity: ParityReport | None = None
    resolved: Mapping[str, Scalar] = field(default_factory=dict)
    batch_size_curve: BatchSizeCurve | None = None


@dataclass(frozen=True)
class ActorSummary:
    """An actor of ``engine=ray``: its machine, what it embedded, how fast, and where its time went."""

    host: str
    node: str
    pid: int
    device: DeviceReport | None = None
    device_name: str | None = None
    precision: Decision | None = None
    parity: ParityReport | None = None
    clips: int = 0
    examples: int = 0
    audio_s: float = 0.0
    realtime_factor: float | None = None
    busy_shares: Mapping[str, float] = field(default_factory=dict)
    input_wait_share: float | None = None
    bottleneck: str | None = None


@dataclass(frozen=True)
class RunStats:
    """Counts of a run's clips and series of its speed and memory, besides the metrics.

    ``skipped`` and ``warnings_by_reason`` count clips by reason, ``shards`` those that are done; ``throughput_series``
    and ``memory_series`` are points in seconds since the steady state began (at ``steady_started_at``, seconds since
    the epoch, where that is not the attempt's own beginning).
    """

    skipped: Mapping[str, int] = field(default_factory=dict)
    warnings_by_reason: Mapping[str, int] = field(default_factory=dict)
    bottleneck: str | None = None
    throughput_series: Points = ()
    memory_series: Points = ()
    steady_started_at: float | None = None
    shards: int | None = None
    actors: tuple[ActorSummary, ...] | None = None
    actors_summary: str | None = None


@dataclass(frozen=True)
class EvaluatedData:
    """The labeled rows behind a run's quality: clips or windows (``unit``), ``labels`` with the rows of each.

    ``labeled_rows`` are those that the rows were drawn from, ``unlabeled_clips`` have no label, ``labels_of_one_group``
    were left out.  ``folds`` are given or drawn, so that rows of one of the ``groups`` (recordings, unless
    ``grouped_by`` says group) are in one of them; ``fold_rows`` are the rows of each.
    """

    unit: str
    rows: int
    labeled_rows: int
    unlabeled_clips: int
    groups: int
    grouped_by: str
    labels: Mapping[str, int]
    labels_of_one_group: Mapping[str, int]
    multilabel: bool
    folds: str
    fold_rows: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """The quality of a run's embeddings; its metrics are among the run's.

    ``values`` holds each metric's values by fold or experiment (None: not defined there), ``chance`` its level by
    chance; runs with the same ``data_sha256`` were measured on the same rows and folds.
    """

    tasks: tuple[str, ...]
    data: EvaluatedData
    data_sha256: str
    values: Mapping[str, tuple[float | None, ...]]
    chance: Mapping[str, float]


@dataclass(frozen=True)
class Repeats:
    """Repeated passes over a run's clips: a point a pass, and samples of memory and power."""

    passes: Points = ()
    samples: Points = ()


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """The worker's part of a result."""

    status: Status
    failure: Failure | None = None
    host: Mapping[str, str | int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    startup: Startup = field(default_factory=Startup)
    stats: RunStats = field(default_factory=RunStats)
    repeats: Repeats | None = None
    worker_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run's description, known before its worker begins.

    ``run_dir`` is its folder or URL; ``started_at`` this attempt's beginning and ``run_started_at`` the first one's, in
    seconds since the epoch; ``attempt`` counts from 1; ``swept`` are its values of what its sweep sweeps; ``git`` is
    the runner's ``commit`` and whether it is ``dirty``.
    """

    run_name: str
    run_dir: str
    config: RunConfig
    started_at: float
    overrides: tuple[str, ...] = ()
    swept: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    git: Mapping[str, str | bool] | None = None
    run_started_at: float | None = None
    attempt: int | None = None
    dataset: DatasetSummary | None = None

    @property
    def first_attempt_at(self) -> float:
        """When the run's first attempt began, in seconds since the epoch."""
        return self.run_started_at or self.started_at


@dataclass(frozen=True, kw_only=True)
class RunResult(WorkerResult):
    """A run as result.json tells it.

    ``mlflow_run_id`` and ``fad``, the distance that sweep.json has, are known while a sweep's page is made, and not in
    the file.
    """

    info: RunInfo
    ended_at: float
    exit_status: int = 0
    advice: str | None = None
    evaluation: Evaluation | None = None
    mlflow_run_id: str | None = None
    fad: SweepFad | None = None

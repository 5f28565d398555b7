"""The metrics that a run or a sweep logs: unit, direction, and meaning.

The only table of metrics: ``vggish-runner report`` ranks by it, MLflow's pages have its order, and the documentation is
generated from it (``python -m runner.core.metrics`` prints it).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from runner.core.errors import RunnerError


class Direction(Enum):
    """Whether higher or lower values of a metric are better."""

    HIGHER = "higher"
    LOWER = "lower"
    NEUTRAL = "-"
    """Neither: it describes a run."""


@dataclass(frozen=True)
class Metric:
    """One metric; an ``N`` in its ``name`` is a number, as in ``replicaN_input_wait_share``, and ``NAME`` is any
    name."""

    name: str
    unit: str
    direction: Direction
    meaning: str

    def goodness(self, value: float, reference: float) -> float:
        """Return a value as a share of the reference: 0.5 is half as fast, or twice as long; NaN if unknown."""
        if value == reference:
            return 1.0
        more, less = (value, reference) if self.direction is Direction.HIGHER else (reference, value)
        return more / less if less else math.copysign(math.inf, more) if more else math.nan


def _metrics(direction: Direction, *rows: tuple[str, str, str]) -> tuple[Metric, ...]:
    return tuple(Metric(name, unit, direction, meaning) for name, unit, meaning in rows)


_MORE, _LESS, _NEITHER = Direction.HIGHER, Direction.LOWER, Direction.NEUTRAL

METRICS: tuple[Metric, ...] = (
    # What people compare by comes first: MLflow's pages keep the order, and plot the first ones.
    *_metrics(
        _MORE,
        ("realtime_factor", "× realtime", "first pass: seconds of audio of embedded clips over `steady_s`"),
        ("realtime_factor_low", "× realtime", "lower end of its 95 % interval; needs 30 batches"),
        ("realtime_factor_high", "× realtime", "upper end"),
        ("repeat_realtime_factor_mean", "× realtime", "mean over the passes after the run that write nothing"),
        ("repeat_realtime_factor_mean_low", "× realtime", "lower end of its 95 % interval"),
        ("repeat_realtime_factor_mean_high", "× realtime", "upper end"),
    ),
    *_metrics(
        _LESS,
        ("repeat_realtime_factor_std", "× realtime", "standard deviation over those passes"),
        (
            "startup_s",
            "s",
            "the worker's start, or its run where it was started ahead, to ready session; the parts follow below",
        ),
        ("rss_peak_mib", "MiB", "the worker's resident memory at most, GPUs' processes included, before the profile"),
        ("device_memory_peak_mib", "MiB", "what tensors took of the GPU at most"),
        ("parity_rel_err", "", "against the reference in float64: the largest error over the largest value"),
    ),
    *_metrics(
        _MORE,
        ("clips_embedded", "clips", "clips of the whole run that were embedded"),
    ),
    *_metrics(
        _LESS,
        ("clips_skipped", "clips", "clips of the whole run that could not be"),
    ),
    # Speed
    *_metrics(
        _MORE,
        ("examples_per_s", "1/s", "examples over `steady_s`"),
        ("clips_per_s", "1/s", "clips that ended, embedded or skipped, over `steady_s`"),
    ),
    *_metrics(
        _LESS,
        (
            "window_realtime_factor_std",
            "× realtime",
            "standard deviation over ten equal windows of batches, the first (warm-up) left out; needs 30 batches",
        ),
        ("steady_s", "s", "the steady state by the wall clock"),
        ("steady_cpu_s", "s", "the worker's processor time in it"),
        ("decode_cpu_s", "s", "the decode processes' processor time, all of it"),
        (
            "batch_ms_p50",
            "ms",
            "a batch from its taking to its result, median; on a GPU four are in flight",
        ),
        ("batch_ms_p95", "ms", "likewise, 95th percentile"),
        ("batch_ms_p99", "ms", "likewise, 99th percentile"),
    ),
    *_metrics(
        _NEITHER,
        ("repeats", "passes", "passes after the run"),
        ("repeat_seconds", "s", "what they took together"),
        ("batches", "batches", "batches of the run"),
    ),
    # Cold start
    *_metrics(
        _LESS,
        ("startup_import_s", "s", "importing TensorFlow, as far as that was not done ahead"),
        ("startup_device_s", "s", "choosing and preparing the device"),
        ("startup_weights_s", "s", "reading and checking the weights"),
        ("startup_calibration_s", "s", "timing both kinds of convolution, once on a machine"),
        ("startup_compile_s", "s", "building and warming up the sessions"),
        ("startup_batch_size_s", "s", "finding `memory.batch_size=auto`"),
        ("startup_parity_s", "s", "the parity gate"),
        ("startup_pin_s", "s", "page-locking the slots of batches"),
    ),
    # Where the time went
    *_metrics(
        _NEITHER,
        ("decode_busy_share", "share", "of the steady state in which decode processes were busy, on average"),
        ("copy_busy_share", "share", "in which a replica had at least one batch on its way to the device"),
        ("compute_busy_share", "share", "in which a replica had at least one batch being computed"),
        ("write_busy_share", "share", "in which the writers made files of complete shards"),
        ("replica_busy_share", "share", "in which a replica had at least one batch, copied or computed"),
    ),
    *_metrics(
        _LESS,
        (
            "replicaN_input_wait_share",
            "share",
            "of the steady state in which a thread of the replica waited for a batch",
        ),
        ("background_cpu_share", "share", "of the processors that other programs took during the first pass"),
        ("repeat_background_cpu_share", "share", "the same during the repeated passes"),
        ("decode_process_restarts", "processes", "decode processes that died"),
    ),
    # Counts
    *_metrics(
        _NEITHER,
        ("clips_padded", "clips", "clips shorter than an example that were padded to one"),
        ("examples", "examples", "examples of the whole run"),
        ("audio_s", "s", "audio of the whole run's embedded clips, in the time of their files"),
        ("attempt_clips", "clips", "clips that ended in this attempt at a resumed run, which its speed is of"),
    ),
    # Memory
    *_metrics(
        _LESS,
        ("decode_rss_peak_mib", "MiB", "the decode processes' resident memory at most, together, without the slots"),
        ("writer_rss_peak_mib", "MiB", "that of the processes that write shards, together"),
        ("device_memory_reserved_mib", "MiB", "what the process holds of the GPU by the driver's account (NVML)"),
    ),
    # The device by itself
    *_metrics(
        _MORE,
        ("model_only_realtime_factor", "× realtime", "the program on data on the device: no decoding, no copy in"),
        ("model_only_examples_per_s", "1/s", "likewise, in examples"),
        ("model_only_tflops", "TFLOP/s", "likewise, in the network's operations"),
        ("model_only_share_of_peak", "share", "of `matmul_peak_tflops`"),
        ("matmul_peak_tflops", "TFLOP/s", "large matrix products in that precision on the same device"),
        ("achieved_tflops", "TFLOP/s", "the network's operations over the run's steady state"),
    ),
    # Energy, of whole processor packages (RAPL) and GPUs (NVML), whoever used them
    *_metrics(
        _LESS,
        ("joules_per_audio_hour", "J", "energy of the repeated passes for an hour of audio"),
    ),
    *_metrics(
        _NEITHER,
        ("energy_j", "J", "energy of the repeated passes: whole processor packages and GPUs, whoever used them"),
        ("energy_rapl_j", "J", "of it the processor packages (RAPL); absent where that can't be read"),
        ("energy_nvml_j", "J", "of it the GPUs (NVML)"),
        ("gpu_power_w_mean", "W", "the GPUs' power in the repeated passes"),
    ),
    # Correctness
    *_metrics(
        _LESS,
        ("parity_max_abs_err", "", "the largest error itself"),
        ("parity_scale_err", "", "error of scale"),
        ("parity_noise_ratio", "", "error in units of what rounding explains (see numerics)"),
        ("parity_bias_ratio", "", "likewise of the average of rows"),
        ("parity_log_mel_err", "", "the largest error of log-mel"),
        ("parity_s", "s", "the gate's time with the reference's"),
    ),
    *_metrics(
        _MORE,
        ("parity_min_cosine", "", "the least cosine between an embedding and the reference's"),
    ),
    *_metrics(
        _NEITHER,
        ("parity_canaries", "batches", "canaries among the run's batches"),
        ("smoke_embedding_mean", "", "the release's own smoke test, with the released weights: mean of embeddings"),
        ("smoke_embedding_std", "", "their standard deviation"),
        ("smoke_postprocessed_mean", "", "mean of their 8-bit form"),
        ("smoke_postprocessed_std", "", "its standard deviation"),
        ("smoke_silence_rank", "", "YAMNet's smoke test: rank of the class Silence for silence, 1 the best"),
        ("smoke_white_noise_rank", "", "rank of the class White noise for noise"),
        ("smoke_sine_wave_rank", "", "rank of the class Sine wave for a sine"),
    ),
    # Quality of the embeddings by their labels (docs/guides/evaluation.md): means over folds or experiments
    *_metrics(
        _MORE,
        ("probe_accuracy", "share", "logistic regression in folds grouped by recording: right labels"),
        ("probe_macro_f1", "share", "likewise, the mean F1 of labels"),
        ("probe_map", "share", "likewise where a row may have several labels: macro average precision (mAP)"),
        ("probe_auc", "share", "likewise, macro area under the ROC curve"),
        ("few_shot_accuracy", "share", "logistic regression that learned from 8 rows a label: right labels"),
        ("few_shot_macro_f1", "share", "likewise, the mean F1 of labels"),
        ("knn_accuracy", "share", "vote of the 15 nearest of other recordings: right labels"),
        ("knn_macro_f1", "share", "likewise, the mean F1 of labels"),
        ("knn_map", "share", "likewise where a row may have several labels: macro average precision (mAP)"),
        ("knn_auc", "share", "likewise, macro area under the ROC curve"),
        ("cluster_ami", "share", "k-means with as many clusters as labels: adjusted mutual information"),
        ("cluster_ari", "share", "likewise, adjusted Rand index"),
        ("cluster_v_measure", "share", "likewise, v-measure, which is above 0 by chance"),
        ("retrieval_map_at_r", "share", "the most similar of other recordings: mean average precision at R"),
    ),
    *_metrics(
        _LESS,
        *(
            (f"{task}_{score}_std", "share", "standard deviation over folds or experiments")
            for task, scores in (
                ("probe", ("accuracy", "macro_f1", "map", "auc")),
                ("few_shot", ("accuracy", "macro_f1")),
                ("knn", ("accuracy", "macro_f1", "map", "auc")),
                ("cluster", ("ami", "ari", "v_measure")),
                ("retrieval", ("map_at_r",)),
            )
            for score in scores
        ),
        ("evaluate_s", "s", "measuring the quality"),
    ),
    # Distances from a reference, by `vggish-runner fad` after the run
    *_metrics(
        _LESS,
        ("fad", "", "Fréchet Audio Distance from the set that the tag `fad.reference` names"),
        ("fad_low", "", "lower end of its 95 % interval, by a bootstrap over clips"),
        ("fad_high", "", "upper end"),
        ("fad_infinity", "", "the same of infinitely many examples, by extrapolation"),
        ("sweep_fad", "", "the same from the job of its sweep that the tag `sweep_fad.reference` names"),
        ("kad", "", "Kernel Audio Distance × 100; about 0 for two sets of the same kind"),
    ),
    *_metrics(
        _NEITHER,
        (
            "fad_paired_clips",
            "clips",
            "clips that its interval draws on both sides alike; 0: the reference is fixed",
        ),
        ("fad_infinity_slope", "", "how much of 1/n the distance of n examples has above that"),
        ("fad_infinity_r2", "", "how well a straight line fits: R² of that extrapolation"),
    ),
    # A cluster
    *_metrics(
        _NEITHER,
        ("actors", "actors", "with `engine=ray`: actors that embedded"),
        ("nodes", "machines", "machines that they were on"),
    ),
    *_metrics(
        _MORE,
        ("actorN_realtime_factor", "× realtime", "an actor's own speed while it was at work"),
        ("nodeN_realtime_factor", "× realtime", "a machine's share of the run's speed"),
    ),
    # Series
    *_metrics(
        _MORE,
        ("window_realtime_factor", "× realtime", "series over the steady state, at most 200 windows"),
        ("window_examples_per_s", "1/s", "series likewise"),
        ("pass_realtime_factor", "× realtime", "series of the repeated passes"),
        ("batch_size_examples_per_s", "1/s", "series whose step is the batch size: the model's speed"),
    ),
    *_metrics(
        _LESS,
        ("batch_size_memory_mib", "MiB", "series whose step is the batch size: memory of the device"),
    ),
    # While a run goes on: ever fewer points, in steps that go on where an earlier attempt ended
    *_metrics(
        _MORE,
        ("progress_realtime_factor", "× realtime", "series while the run goes on: speed since the point before"),
    ),
    *_metrics(
        _NEITHER,
        ("progress_clips", "clips", "series likewise: clips of the whole run that have ended"),
        ("progress_audio_s", "s", "series likewise: audio embedded in this attempt"),
        ("system/NAME", "", "series likewise: the machine's load, under MLflow's own names; see its System tab"),
    ),
    *_metrics(
        _LESS,
        ("progress_clips_skipped", "clips", "series likewise: clips of this attempt that were skipped"),
    ),
    # A sweep's parent
    *_metrics(
        _MORE,
        ("best_realtime_factor", "× realtime", "on a sweep's parent: its best job's"),
        ("best_speedup", "×", "over the fastest CPU job in float32, else over the slowest job"),
    ),
    *_metrics(
        _NEITHER,
        ("jobs", "jobs", "jobs of a sweep"),
    ),
    *_metrics(
        _LESS,
        ("jobs_failed", "jobs", "of them failed"),
        ("jobs_interrupted", "jobs", "of them stopped"),
    ),
)

_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}

_RANK: Mapping[str, int] = {metric.name: rank for rank, metric in enumerate(METRICS)}


def metric_of(name: str) -> Metric | None:
    """Return the metric that a run logs under a name; None if there is none."""
    pattern = "system/NAME" if name.startswith("system/") else re.sub(r"^([a-z]+)\d+_", r"\1N_", name)
    return _BY_NAME.get(name) or _BY_NAME.get(pattern)


def require_metric(name: str) -> Metric:
    """Return the metric of a name that the user gave.

    Raises:
        RunnerError: there is none; the message has similar names.
    """
    metric = metric_of(name)
    if metric is None:
        similar = difflib.get_close_matches(name, _BY_NAME, 3) or list(_BY_NAME)[:3]
        raise RunnerError(
            f"{name} is not a metric: python -m runner.core.metrics lists all (similar: {', '.join(similar)})"
        )
    return metric


def ranking_metric(name: str) -> Metric:
    """Return the metric of a name that the user gave to rank runs by.

    Raises:
        RunnerError: there is none, or it has no direction.
    """
    metric = require_metric(name)
    if metric.direction is Direction.NEUTRAL:
        raise RunnerError(
            f"{name} describes a run, and has no better direction: give one that can be ranked first, "
            f"as in --metric realtime_factor --metric {name}"
        )
    return metric


def in_order(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a run's metrics in the table's order, unknown ones last."""

    def rank(name: str) -> int:
        metric = metric_of(name)
        return _RANK[metric.name] if metric else len(METRICS)

    return {name: float(metrics[name]) for name in sorted(metrics, key=rank)}


def as_markdown() -> str:
    """Return the table in Markdown, as in docs/reference/metrics.md."""
    rows = [f"| `{metric.name}` | {metric.unit} | {metric.direction.value} | {metric.meaning} |" for metric in METRICS]
    return "\n".join(["| metric | unit | better | meaning |", "| --- | --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(as_markdown())

BACKGROUND_LOAD = "other programs took"

MAX_BACKGROUND_LOAD = 0.25
"""Share of the processors above which other programs make a measurement unfit for comparison."""

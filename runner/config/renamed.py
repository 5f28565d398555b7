"""Names of earlier versions, and the message that names their successors."""

from __future__ import annotations

RENAMED = {
    "dataset.fetch_ahead": "dataset.prefetch",
    "dataset.fetch_timeout_s": "dataset.download_timeout_s",
    "dataset.clip_timeout_s": "dataset.decode_timeout_s",
    "dataset.max_clip_s": "dataset.max_duration_s",
    "dataset.allow_outside": "dataset.allow_paths_outside_root",
    "dataset.audio": "dataset.audio_column",
    "dataset.name": "dataset.name_column for a Parquet column, or dataset=OPTION for another data set",
    "dataset.label": "dataset.label_column",
    "output.put_timeout_s": "output.upload_timeout_s",
    "output.shard_clips": "output.clips_per_shard",
    "memory.host_memory_mib": "memory.host_limit_mib",
    "memory.batch_size_by_device": "memory.default_batch_size",
    "engine.stop_grace_s": "engine.shutdown_timeout_s",
    "engine.concurrency": "engine.min_size and engine.max_size",
    "profile.device_speed_s": "profile.device_benchmark_s",
    "profile.min_seconds": "profile.repeat_s",
    "profile.pictures": "profile.plots",
    "profile.map": "profile.projection",
    "profile.curve": "profile.batch_size_curve",
    "parity.action": "parity=strict, parity=warn or parity=off",
    "weights.kind": "weights=OPTION",
    "dataset.kind": "dataset=OPTION",
    "engine.kind": "engine=OPTION",
    "tracking.kind": "tracking=OPTION",
    "parity=gate": "parity=strict",
    "frontend.resampler=reference": "frontend.resampler=kaiser_best",
    "output=parquet": "output.formats=[parquet]",
    "output=npz": "output.formats=[npz]",
    "output=tfrecord": "output.formats=[tfrecord] output.postprocess=audioset",
}
"""Keys, or values of keys, and the override that replaces each."""

RENAMED_RESOLVERS = {
    "runner_models": "runner.models_dir",
    "runner_outputs": "runner.outputs_root",
    "runner_dir": "runner.output_dir",
    "runner_devices": "runner.devices",
}
"""Interpolations such as ``${runner_devices:}``."""


def renamed_key(key: str, value: str = "") -> str | None:
    """Return a message with the new name of a key or of its value; None if it is not of an earlier version."""
    for before, now in RENAMED.items():
        if f"{key}={value}" == before or f"{key}.".startswith(f"{before}."):
            return f"{before} has another name now: use {now}"
    return None


def renamed_resolver(message: str) -> str | None:
    """Return the same for an interpolation that OmegaConf's message about it names."""
    for before, now in RENAMED_RESOLVERS.items():
        if f"Unsupported interpolation type {before}" in message:
            return f"${{{before}:}} has another name now: use ${{{now}:}}"
    return None

"""Names of the files of a run: one place for all of them."""

from __future__ import annotations

CACHE = ".cache"
"""Folder below ``paths.models`` for what was measured once: the parity reference's answers, the calibration."""

EMBEDDINGS = "embeddings"

NPZ = "npz"

TFRECORD = "tfrecord"

FOLDERS = (EMBEDDINGS, NPZ, TFRECORD)
"""The folders of a run that hold embeddings, one a format."""

DESCRIPTIONS = (f"{NPZ}/metadata.json", f"{TFRECORD}/metadata.json", f"{TFRECORD}/labels.csv")
"""Files in them beside the shards' own."""

STATE = ".runner"
"""Folder of a run's state, below its own; see ``runner.output.state.plan``."""

JOURNAL, CLIP_PARTS, NPZ_FILES = "journal.jsonl", "clips", "npz"

IDENTITY, WORKER_LOCK = "identity.json", "worker.lock"
"""Files and folders in it."""

BATCHES = "batches.parquet"
"""The file of a run with its raw batch timings."""

TRACE = "trace"
"""The folder of a run with TensorFlow's profile of a few batches."""

MERGING, MERGED = "merge_in_progress.json", "merged.json"

CLIPS = "clips.parquet"

PLOTS = "plots"
"""Folder of a run's or a sweep's pictures."""

TRACKING, SWEEP_FILE = "tracking.json", "sweep.json"
"""Files that note the MLflow run of a run's folder, and of a sweep's."""

PLAN, MANIFEST = "plan.json", "manifest.parquet"

LOCK, HOLDER, SESSIONS = "run.lock", "lock_owner.json", "attempts.jsonl"

HOLDER_OBJECT = f"{STATE}/lease.json"

COMMITS = f"{STATE}/commits"

RESULT, LOG = "result.json", "runner.log"

EVALUATION = "evaluation.json"
"""The quality of a run's embeddings, by its labels."""

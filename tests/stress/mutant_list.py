"""The mistakes of ``tests/stress/mutants.py``: in orchestration, each one that somebody could make and none without
effect."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A mistake: what goes wrong by it, and the text of a file in runner/, there once, that becomes another.

    ``tests`` are files or tests that may catch it, most likely ones first, with blanks in between.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = "tests/stress/test_faults.py"
POWER = f"{FAULTS}::test_a_loss_of_power_at_any_moment_leaves_a_run_that_the_same_command_completes"
CALLS = f"{FAULTS}::test_every_call_that_fails_leaves_a_run_that_the_same_command_completes"
PARTITIONS = "tests/end_to_end/test_partitions.py"

MUTANTS: tuple[Mutant, ...] = (
    # Taking up: journal, identity, locks
    Mutant(
        "a line of the journal is not flushed to disk",
        "output/state/journal.py",
        "        os.fsync(self._file)\n",
        "",
        f"tests/output/state/test_journal.py {POWER}",
    ),
    Mutant(
        "a new line is glued to one that was cut off",
        "output/state/journal.py",
        'self._is_truncated = _last_byte(path) not in (b"", b"\\n")',
        "self._is_truncated = False",
        "tests/output/state/test_journal.py",
    ),
    Mutant(
        "a shard that was taken back counts as done",
        "output/state/journal.py",
        "            committed.pop(entry.shard, None)\n",
        "            continue\n",
        "tests/output/state/test_journal.py tests/output/state/test_resume.py",
    ),
    Mutant(
        "a line of the journal is believed though the plan's rows are others",
        "output/state/journal.py",
        "        if number < len(row_digests) and entry.row_digest == row_digests[number]\n",
        "        if number < len(row_digests)\n",
        "tests/output/state/test_resume.py",
    ),
    Mutant(
        "the checksum of a journal's line is not compared",
        "output/state/journal.py",
        'if json.loads(_with_checksum(values))["crc"] != checksum:',
        "if not checksum:",
        "tests/output/state/test_journal.py",
    ),
    Mutant(
        "a file of the right size is taken for whole",
        "output/verify.py",
        " or digest_file(path) != expected",
        "",
        "tests/output/state/test_journal.py tests/output/test_output.py",
    ),
    Mutant(
        "each command has a lock of its own",
        "output/state/locks.py",
        "FileLock(layout.run_lock, timeout=0)",
        'FileLock(layout.state / f"{os.getpid()}.lock", timeout=0)',
        "tests/output/state/test_resume.py tests/end_to_end/test_resume.py::test_two_commands_at_once_one_is_refused",
    ),
    Mutant(
        "shards of new clips count from 0 again",
        "output/state/plan.py",
        "shards += [Span(stored.clips + first, stored.clips + end) for first, end in added]",
        "shards += added",
        "tests/output/state/test_resume.py",
    ),
    Mutant(
        "a run goes on with other weights or PCA parameters than it was begun with",
        "output/state/identity.py",
        "    if started is None:\n        write_shared",
        "    if started != identity:\n        write_shared",
        "tests/output/state/test_resume.py tests/core/test_readable.py",
    ),
    Mutant(
        "a finished run is begun again for a file that can't be read for good",
        "output/state/rerun.py",
        '"unreadable": _is_readable,',
        '"unreadable": _always,',
        "tests/output/state/test_resume.py",
    ),
    # The data set: manifest, listing, partitions, labels
    Mutant(
        "the first partition begins with the second shard",
        "dataset/manifest.py",
        "range(index - 1, len(shards), count)",
        "range(index, len(shards), count)",
        f"{PARTITIONS}::test_parts_are_a_deterministic_cut_without_overlap tests/dataset/test_shards.py",
    ),
    Mutant(
        "the label is the topmost folder's name",
        "dataset/clip_names.py",
        'return display_name(folder.rpartition(b"/")[2]) if slash else None',
        'return display_name(folder.partition(b"/")[0]) if slash else None',
        "tests/dataset/test_folder.py",
    ),
    Mutant(
        "folders are listed in the order of their names without the slash",
        "dataset/listing.py",
        "    keyed.sort(key=itemgetter(0))\n    return keyed",
        "    keyed.sort(key=lambda pair: os.fsencode(pair[1].name))\n    return keyed",
        "tests/dataset/test_folder.py tests/storage/test_object_input.py::test_listing_is_in_the_order_of_a_folders",
    ),
    Mutant(
        "a listing of S3 ends after its first page",
        "dataset/listing.py",
        'if not page.get("IsTruncated"):',
        'if len(page.get("Contents", ())) <= _PAGE_KEYS:',
        (
            "tests/storage/test_object_input.py::test_listing_is_in_the_order_of_a_folders "
            "tests/storage/test_object_input.py"
        ),
    ),
    Mutant(
        "a part of a file may be of no length",
        "dataset/manifest_file.py",
        "if end is not None and end <= (start or 0.0):",
        "if end is not None and end < (start or 0.0):",
        "tests/dataset/test_manifest_file.py",
    ),
    Mutant(
        "the digest does not tell apart names that run together",
        "dataset/digests.py",
        "                lengths.update(column.lengths.data)\n",
        "                lengths.update(b'')\n",
        "tests/dataset/test_digests.py",
    ),
    Mutant(
        "a path is held to the root before its .. are taken out",
        "dataset/manifest_file.py",
        "if not os.path.normpath(os.path.join(root, path)).startswith(inside):",
        "if not os.path.join(root, path).startswith(inside):",
        "tests/dataset/test_manifest_file.py",
    ),
    Mutant(
        "a new label gets the number of the last known one",
        "output/tfrecord.py",
        "max(earlier.values()) + 1 + n for n, label",
        "max(earlier.values()) + n for n, label",
        "tests/output/test_formats.py",
    ),
    # At work: pool, decoding, engine, spill, signals
    Mutant(
        "clips that waited for a decode process that died are lost",
        "pipeline/decode_pool.py",
        "        self._retries.extend(dead.tasks.values())\n",
        "",
        (
            "tests/pipeline/test_pool.py "
            "tests/pipeline/test_engine.py::test_decode_processes_that_are_killed_cost_their_clip_alone"
        ),
    ),
    Mutant(
        "a clip is tried once more than it may be",
        "pipeline/decode_pool.py",
        "task.crashes + 1 < _MAX_CRASHES",
        "task.crashes + 1 <= _MAX_CRASHES",
        (
            "tests/pipeline/test_pool.py "
            "tests/pipeline/test_engine.py::test_decode_processes_that_are_killed_cost_their_clip_alone"
        ),
    ),
    Mutant(
        "the time in which all processes were stopped counts as a decoder's silence",
        "pipeline/decode_pool.py",
        "min(elapsed_s, _MAX_CHECK_S)",
        "elapsed_s",
        "tests/pipeline/test_pool.py",
    ),
    Mutant(
        "starts that failed are added up over the whole run",
        "pipeline/decode_pool.py",
        "process.is_ready, self._failed_starts = True, 0",
        "process.is_ready = True",
        "tests/pipeline/test_pool.py",
    ),
    Mutant(
        "on_truncated=skip keeps what is truncated, and keep skips it",
        "pipeline/decode_worker.py",
        'options.on_truncated == "skip"',
        'options.on_truncated != "skip"',
        "tests/audio/test_hostile.py tests/audio/test_lengths.py",
    ),
    Mutant(
        "a stop leaves the shards under way unfinished",
        "pipeline/pipeline.py",
        "return last_clip is not None and shard_of(clip.number) == shard_of(last_clip)",
        "return False",
        "tests/pipeline/test_engine.py::test_a_stop_finishes_the_shards_under_way_only "
        "tests/end_to_end/test_runs.py::test_ctrl_c_ends_the_shard_and_keeps_what_was_done",
    ),
    Mutant(
        "the batch of a replica that failed is lost",
        "pipeline/replica_pool.py",
        "                return\n        self._batches.requeue(batch)\n",
        "                return\n        self._batches.done()\n",
        (
            "tests/pipeline/test_engine.py::test_a_replica_that_fails_hands_its_batch_to_the_others "
            "tests/pipeline/test_engine.py"
        ),
    ),
    Mutant(
        "embeddings that are NaN are written",
        "pipeline/assembler.py",
        "all_finite = bool(np.isfinite(embeddings).all())",
        "all_finite = bool(np.isfinite(embeddings).any())",
        "tests/pipeline/test_engine.py::test_embeddings_that_overflow_are_no_embeddings tests/pipeline/test_engine.py",
    ),
    Mutant(
        "memory of embeddings that are written is never given back",
        "output/spill.py",
        "            self.in_memory -= size\n",
        "            self.in_memory -= 0\n",
        "tests/output/test_spill.py",
    ),
    Mutant(
        "two signals at once count as two requests",
        "core/stop_signals.py",
        "if self.count and (number == _SIGHUP or now - self._at < _ONE_REQUEST_S):",
        "if self.count and number == _SIGHUP:",
        "tests/jobs/test_launch.py",
    ),
    # Files: writer, formats, merge
    Mutant(
        "the journal does not know of a shard's part of clips.parquet",
        "output/writer.py",
        "for path in (*files, clips_file)",
        "for path in files",
        f"tests/output/test_output.py "
        f"tests/output/remote/test_commits.py::test_shards_that_are_taken_back_lose_their_commit_objects "
        f"{PARTITIONS} {POWER}",
    ),
    Mutant(
        "a file gets its name before its bytes are on disk",
        "core/files.py",
        "    flush(temporary)\n    temporary.replace(path)",
        "    temporary.replace(path)",
        f"tests/dataset/test_demo.py {POWER}",
    ),
    Mutant(
        "a write that failed leaves its temporary file",
        "core/files.py",
        "            temporary.unlink(missing_ok=True)\n        raise",
        "            pass\n        raise",
        f"tests/output/test_output.py {CALLS}",
    ),
    Mutant(
        "the examples of a part of a file begin at 0",
        "output/parquet.py",
        "starts = np.repeat(np.array([row.start_s for row in rows]), counts) + example * info.hop_s",
        "starts = example * info.hop_s",
        "tests/output/test_output.py",
    ),
    Mutant(
        "a shard that is done again loses the npz files that are new",
        "output/npz.py",
        "for name in json.loads(earlier).keys() - set(current):",
        "for name in set(current) - json.loads(earlier).keys():",
        "tests/output/test_formats.py",
    ),
    Mutant(
        "a part's shards keep their own numbers in the whole",
        "output/merge/merge.py",
        "MergedShard(partition.info.shards[number], partition, entry)",
        "MergedShard(number, partition, entry)",
        f"{PARTITIONS}::test_partitions_make_the_whole_bit_for_bit",
    ),
    Mutant(
        "a merge does not miss the last part",
        "output/merge/merge.py",
        "sorted(set(range(1, count + 1)) - set(indices))",
        "sorted(set(range(1, count)) - set(indices))",
        f"{PARTITIONS}::test_what_is_no_whole_is_said",
    ),
    Mutant(
        "clips.parquet has the shards as they were finished",
        "output/writer.py",
        "        for shard in sorted(committed):\n",
        "        for shard in committed:\n",
        "tests/output/test_output.py tests/pipeline/test_engine.py",
    ),
    # Object stores: commits, lease, retries, reading ahead
    Mutant(
        "a store that throttles is not asked again",
        "storage/retry.py",
        "TRANSIENT_STATUS = (408, 409, 425, 429)",
        "TRANSIENT_STATUS = (408, 409, 425)",
        (
            "tests/storage/test_object_retries.py::test_errors_are_told_apart_by_their_status "
            "tests/storage/test_object_input.py"
        ),
    ),
    Mutant(
        "what will never pass is tried again, and what may pass is not",
        "storage/retry.py",
        "            if is_last or not is_transient(error):\n",
        "            if is_last or is_transient(error):\n",
        "tests/storage/test_object_retries.py::test_what_may_pass_is_tried_again_and_the_rest_is_not",
    ),
    Mutant(
        "a worker that lost the output says nothing and goes on",
        "storage/worker_lease.py",
        "        except ConfigError as error:\n            raise StoreError(str(error)) from error\n",
        "        except ConfigError:\n            return\n",
        "tests/output/remote/test_commits.py::test_a_worker_that_lost_the_output_commits_no_more",
    ),
    Mutant(
        "a holder that was seen lately is taken for dead",
        "storage/lease_owner.py",
        "if abs(time.time() - self.time) < LEASE_EXPIRY_S:",
        "if abs(time.time() - self.time) > LEASE_EXPIRY_S:",
        "tests/storage/test_lease.py::test_a_dead_holder_is_taken_over_and_a_living_one_is_not",
    ),
    Mutant(
        "shards that are to be done again keep their commit objects",
        "output/remote/run.py",
        "        self._remove(commit_name(shard) for shard in restored.committed.keys() - plan.committed.keys())\n",
        "",
        "tests/output/remote/test_commits.py::test_shards_of_changed_sources_lose_their_commit_objects",
    ),
    Mutant(
        "one object more is fetched ahead than asked for",
        "storage/prefetch.py",
        "if len(self._in_progress) >= self._ahead:",
        "if len(self._in_progress) > self._ahead:",
        "tests/storage/test_object_input.py::test_objects_are_fetched_ahead_and_never_more_than_asked",
    ),
    Mutant(
        "an object that is not there counts as unreadable",
        "storage/prefetch.py",
        "if isinstance(error, FileNotFoundError | IsADirectoryError):",
        "if isinstance(error, IsADirectoryError):",
        "tests/storage/test_object_input.py::test_final_answers_are_reasons_and_not_asked_for_again",
    ),
    Mutant(
        "a store that is silent is asked for each object",
        "output/state/rerun.py",
        "self._gave_up = self._gave_up or is_transient(error)",
        "self._gave_up = False",
        "tests/storage/test_object_retries.py::test_objects_of_a_store_that_is_silent_are_asked_for_once",
    ),
    # The command: sweeps, job, launch, exit status, command line, redaction
    Mutant(
        "a worker that SIGTERM ended is a failed run",
        "jobs/worker_process.py",
        "if killed is None and -status in STOP_SIGNALS:",
        "if killed is None and status in STOP_SIGNALS:",
        "tests/jobs/test_launch.py",
    ),
    Mutant(
        "the exit status after a signal is the signal's number",
        "cli/run.py",
        "raise RunInterrupted(128 + number)",
        "raise RunInterrupted(number)",
        "tests/jobs/test_launch.py tests/end_to_end/test_runs.py",
    ),
    Mutant(
        "what else is printed as JSON is taken for an event",
        "contract/events.py",
        "except (ValueError, KeyError, TypeError, AttributeError):",
        "except (ValueError, KeyError, TypeError):",
        "tests/jobs/test_launch.py",
    ),
    Mutant(
        "queries stay in addresses that are logged",
        "core/redact.py",
        'return _QUERY.sub(r"\\1", _USER.sub(r"\\1", text))',
        'return _USER.sub(r"\\1", text)',
        "tests/tracking/test_tracking.py::test_credentials_are_taken_out_and_the_rest_is_left",
    ),
    Mutant(
        "a failed run has the exit status 0",
        "jobs/job.py",
        '{"finished": 0, "interrupted": self._guard.exit_status}.get(outcome.status, 1)',
        '{"finished": 0, "interrupted": self._guard.exit_status}.get(outcome.status, 0)',
        "tests/jobs/test_launch.py::test_a_spec_that_was_cut_off_is_a_failure_in_one_sentence "
        "tests/end_to_end/test_runs.py::test_a_killed_worker_is_a_failed_run_with_its_signal",
    ),
    Mutant(
        "a sweep's folder takes another sweep",
        "jobs/sweep.py",
        "        if before != tuple(map(without_credentials, overrides)):\n",
        "        if len(before) != len(overrides):\n",
        "tests/output/state/test_resume.py "
        "tests/output/remote/test_object_sweep.py::test_a_second_command_and_another_sweep_are_refused "
        "tests/end_to_end/test_resume.py::test_a_sweep_that_was_stopped_is_resumed",
    ),
    Mutant(
        "a signal that came too late for a job does not end its sweep",
        "jobs/job.py",
        'if guard.count and job.in_sweep and result.status != "interrupted":',
        'if guard.count and job.in_sweep and result.status == "interrupted":',
        "tests/jobs/test_launch.py",
    ),
    Mutant(
        "a run may skip one clip less than dataset.max_skipped",
        "pipeline/skip_limit.py",
        "if self._limit is not None and self._skipped > self._limit:",
        "if self._limit is not None and self._skipped >= self._limit:",
        "tests/pipeline/test_limits.py tests/end_to_end/test_resume.py::test_a_run_that_skips_too_much_is_stopped",
    ),
    # Comparing: tracking, report, metrics, verdict
    Mutant(
        "the variant that takes most memory is recommended",
        "reporting/verdict.py",
        "variant.memory_mib <= _LIGHTER * fastest.memory_mib]",
        "variant.memory_mib >= _LIGHTER * fastest.memory_mib]",
        "tests/reporting/test_verdict.py",
    ),
    Mutant(
        "more counts as better of every metric",
        "reporting/comparability.py",
        "reverse=ranking_metric(by).direction is Direction.HIGHER)",
        "reverse=True)",
        "tests/reporting/test_comparing.py",
    ),
    Mutant(
        "twice as long counts as twice as good",
        "core/metrics.py",
        "(value, reference) if self.direction is Direction.HIGHER else (reference, value)",
        "(value, reference)",
        "tests/core/test_metrics.py",
    ),
    Mutant(
        "a sweep with failed jobs is FINISHED in MLflow",
        "tracking/sweeps.py",
        '"FAILED" if count["failed"] or not results else "FINISHED"',
        '"FAILED" if not results else "FINISHED"',
        "tests/tracking/test_tracking.py::test_the_parent_of_a_sweep_says_how_its_jobs_went",
    ),
    Mutant(
        "the regression check fails the better run",
        "cli/report.py",
        "elif not (share := definition.goodness(value, expected)) >= minimum:",
        "elif not (share := definition.goodness(value, expected)) <= minimum:",
        "tests/cli/test_report.py::test_the_regression_check",
    ),
    Mutant(
        "MLFLOW_TRACKING_URI goes before the address that was given",
        "tracking/client.py",
        'if uri := tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):',
        'if uri := os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri:',
        "tests/tracking/test_tracking.py::test_the_store_is_the_given_one_else_the_environments_else_local",
    ),
    # Ray
    Mutant(
        "a machine that goes is the fault of the shards that were under way there",
        "engines/ray/pool.py",
        "self._deaths[shard] += not with_machine",
        "self._deaths[shard] += 1",
        "tests/engines/ray/test_ray_pool.py::test_machines_that_go_are_no_fault_of_their_shards_however_often",
    ),
    Mutant(
        "a shard that an actor takes back stays done",
        "engines/ray/driver.py",
        "                self.journal.append(ShardEntry(shard, revoked=True))\n",
        "",
        "tests/engines/ray/test_ray_actor.py::test_shards_that_an_actor_takes_back_are_left_to_be_done",
    ),
    # Several GPUs
    Mutant(
        "shards of a process that died are lost",
        "engines/embedder_processes.py",
        "        self._remaining.extendleft(sorted(process.shards, reverse=True))\n",
        "",
        "tests/engines/test_embedder_processes.py::test_a_shard_of_a_process_that_dies_after_the_last_was_handed_out_is_done_in_another_round",
    ),
    Mutant(
        "clips that a process skipped before it died count twice",
        "engines/embedder_processes.py",
        "self._work.forget_skipped(process.skipped)",
        "self._work.forget_skipped(0)",
        "tests/engines/test_embedder_processes.py::test_a_shard_of_a_process_that_dies_after_the_last_was_handed_out_is_done_in_another_round",
    ),
    # Interruptions
    Mutant(
        "threads of a command that was stopped wait for their store",
        "storage/retry.py",
        "    while True:\n        check_interruption()\n",
        "    while True:\n",
        "tests/storage/test_interruption.py",
    ),
    Mutant(
        "each lease that a stopped command releases may take its time",
        "core/interruption.py",
        "    if _cleanup_ends_at is None:\n",
        "    if True:\n",
        "tests/storage/test_interruption.py",
    ),
)

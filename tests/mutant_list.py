"""The mistakes of ``tests/mutants.py``: in orchestration, each one that somebody could make and none without effect."""

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


FAULTS = "tests/test_faults.py"
POWER = f"{FAULTS}::test_a_loss_of_power_at_any_moment_leaves_a_run_that_the_same_command_completes"
CALLS = f"{FAULTS}::test_every_call_that_fails_leaves_a_run_that_the_same_command_completes"
PARTITIONS = "tests/end_to_end/test_partitions.py"

MUTANTS: tuple[Mutant, ...] = (
    # Taking up: journal, identity, locks
    Mutant(
        "a line of the journal is not flushed to disk",
        "journal.py",
        "        os.fsync(self._file)\n",
        "",
        f"tests/test_journal.py {POWER}",
    ),
    Mutant(
        "a new line is glued to one that was cut off",
        "journal.py",
        'self._cut_off = _last_byte(path) not in (b"", b"\\n")',
        "self._cut_off = False",
        "tests/test_journal.py",
    ),
    Mutant(
        "a shard that was taken back counts as done",
        "journal.py",
        "            done.pop(entry.shard, None)\n",
        "            continue\n",
        "tests/test_journal.py tests/test_resume.py",
    ),
    Mutant(
        "a line of the journal is believed though the plan's rows are others",
        "journal.py",
        " if number < len(rows) and entry.rows == rows[number]}",
        " if number < len(rows)}",
        "tests/test_resume.py",
    ),
    Mutant(
        "the checksum of a journal's line is not compared",
        "journal.py",
        'if json.loads(_with_checksum(values))["crc"] != checksum:',
        "if not checksum:",
        "tests/test_journal.py",
    ),
    Mutant(
        "a file of the right size is taken for whole",
        "journal.py",
        " or describe_file(path) != tuple(described)",
        "",
        "tests/test_journal.py tests/test_output.py",
    ),
    Mutant(
        "each command has a lock of its own",
        "resume.py",
        "FileLock(state / LOCK, timeout=0)",
        'FileLock(state / f"{os.getpid()}.lock", timeout=0)',
        "tests/test_resume.py tests/end_to_end/test_resume.py::test_two_commands_at_once_one_is_refused",
    ),
    Mutant(
        "shards of new clips count from 0 again",
        "resume.py",
        "shards += [(clips + start, clips + end) for start, end in more]",
        "shards += more",
        "tests/test_resume.py",
    ),
    Mutant(
        "a run goes on with other weights or PCA parameters than it was begun with",
        "taking_up.py",
        "    if before is None:\n        write_atomic",
        "    if before != now:\n        write_atomic",
        "tests/test_resume.py tests/test_readable.py",
    ),
    Mutant(
        "a finished run is begun again for a file that can't be read for good",
        "retrying.py",
        '"unreadable": _opens,',
        '"unreadable": _is_tried,',
        "tests/test_resume.py",
    ),
    # The data set: manifest, listing, partitions, labels
    Mutant(
        "the first partition begins with the second shard",
        "manifest.py",
        "range(which - 1, len(shards), of)",
        "range(which, len(shards), of)",
        f"{PARTITIONS}::test_parts_are_a_deterministic_cut_without_overlap tests/test_manifest.py",
    ),
    Mutant(
        "the label is the topmost folder's name",
        "manifest.py",
        'return _shown(folder.rpartition(b"/")[2]) if slash else None',
        'return _shown(folder.partition(b"/")[0]) if slash else None',
        "tests/test_manifest.py",
    ),
    Mutant(
        "folders are listed in the order of their names without the slash",
        "listing.py",
        "    found.sort(key=itemgetter(0))\n    return found",
        "    found.sort(key=lambda each: os.fsencode(each[1].name))\n    return found",
        "tests/test_manifest.py tests/test_object_input.py::test_listing_is_in_the_order_of_a_folders",
    ),
    Mutant(
        "a listing of S3 ends after its first page",
        "listing.py",
        'if not page.get("IsTruncated"):',
        'if len(page.get("Contents", ())) <= _PAGE_KEYS:',
        "tests/test_object_input.py::test_listing_is_in_the_order_of_a_folders tests/test_object_input.py",
    ),
    Mutant(
        "a part of a file may be of no length",
        "manifest.py",
        "if end is not None and end <= (start or 0.0):",
        "if end is not None and end < (start or 0.0):",
        "tests/test_manifest.py",
    ),
    Mutant(
        "the digest does not tell apart names that run together",
        "digests.py",
        "                lengths.update(column.lengths.data)\n",
        "                lengths.update(b'')\n",
        "tests/test_manifest.py",
    ),
    Mutant(
        "a path is held to the root before its .. are taken out",
        "manifest.py",
        "if not os.path.normpath(os.path.join(root, path)).startswith(inside):",
        "if not os.path.join(root, path).startswith(inside):",
        "tests/test_manifest.py",
    ),
    Mutant(
        "a new label gets the number of the last known one",
        "formats.py",
        "max(known.values()) + 1 + n for n, label",
        "max(known.values()) + n for n, label",
        "tests/test_formats.py",
    ),
    # At work: pool, decoding, engine, spill, signals
    Mutant(
        "clips that waited for a decode process that died are lost",
        "pool.py",
        "        self._retries.extend(dead.tasks.values())\n",
        "",
        "tests/test_pool.py tests/test_engine.py::test_decode_processes_that_are_killed_cost_their_clip_alone",
    ),
    Mutant(
        "a clip is tried once more than it may be",
        "pool.py",
        "task.attempt + 1 < _ATTEMPTS",
        "task.attempt + 1 <= _ATTEMPTS",
        "tests/test_pool.py tests/test_engine.py::test_decode_processes_that_are_killed_cost_their_clip_alone",
    ),
    Mutant(
        "the time in which all processes were stopped counts as a decoder's silence",
        "pool.py",
        "process.silent_s += min(since, _LOOK_COUNTS_S)",
        "process.silent_s += since",
        "tests/test_pool.py",
    ),
    Mutant(
        "starts that failed are added up over the whole run",
        "pool.py",
        "process.ready, self._failed_starts = True, 0",
        "process.ready = True",
        "tests/test_pool.py",
    ),
    Mutant(
        "on_truncated=skip keeps what is truncated, and keep skips it",
        "decode.py",
        'options.on_truncated == "skip"',
        'options.on_truncated != "skip"',
        "tests/test_hostile.py tests/test_lengths.py",
    ),
    Mutant(
        "a stop leaves the shards under way unfinished",
        "engine.py",
        "return last_clip is not None and self._open_shards.of(clip.number) == self._open_shards.of(last_clip)",
        "return False",
        "tests/test_engine.py::test_a_stop_finishes_the_shards_under_way_only "
        "tests/end_to_end/test_runs.py::test_ctrl_c_ends_the_shard_and_keeps_what_was_done",
    ),
    Mutant(
        "the batch of a lane that failed is lost",
        "engine.py",
        "                return\n        self._batches.hand_back(batch)\n",
        "                return\n        self._batches.done()\n",
        "tests/test_engine.py::test_a_lane_that_fails_hands_its_batch_to_the_others tests/test_engine.py",
    ),
    Mutant(
        "embeddings that are NaN are written",
        "gathering.py",
        "all_finite = bool(np.isfinite(embeddings).all())",
        "all_finite = bool(np.isfinite(embeddings).any())",
        "tests/test_engine.py::test_embeddings_that_overflow_are_no_embeddings tests/test_engine.py",
    ),
    Mutant(
        "memory of embeddings that are written is never given back",
        "spill.py",
        "            self.in_memory -= size\n",
        "            self.in_memory -= 0\n",
        "tests/test_spill.py",
    ),
    Mutant(
        "two signals at once count as two requests",
        "stop_signals.py",
        "if self.count and (number == _SIGHUP or now - self._at < _ONE_REQUEST_S):",
        "if self.count and number == _SIGHUP:",
        "tests/test_launch.py",
    ),
    # Files: writer, formats, merge
    Mutant(
        "the journal does not know of a shard's part of clips.parquet",
        "output.py",
        "        files.append(part)\n",
        "",
        f"tests/test_output.py tests/test_object_output.py::test_shards_that_are_taken_back_lose_their_commit_objects "
        f"{PARTITIONS} {POWER}",
    ),
    Mutant(
        "a file gets its name before its bytes are on disk",
        "files.py",
        "    flush(temporary)\n    temporary.replace(path)",
        "    temporary.replace(path)",
        f"tests/test_demo.py {POWER}",
    ),
    Mutant(
        "a write that failed leaves its temporary file",
        "files.py",
        "            temporary.unlink(missing_ok=True)\n        raise",
        "            pass\n        raise",
        f"tests/test_output.py {CALLS}",
    ),
    Mutant(
        "the examples of a part of a file begin at 0",
        "formats.py",
        "starts = np.repeat(np.array([row.start_s for row in rows]), counts) + example * hop_s",
        "starts = example * hop_s",
        "tests/test_output.py",
    ),
    Mutant(
        "a shard that is done again loses the npz files that are new",
        "formats.py",
        "for name in json.loads(before).keys() - set(now):",
        "for name in set(now) - json.loads(before).keys():",
        "tests/test_formats.py",
    ),
    Mutant(
        "a part's shards keep their own numbers in the whole",
        "merge.py",
        'Placed(part.about["shards"][local], part, entry)',
        "Placed(local, part, entry)",
        f"{PARTITIONS}::test_partitions_make_the_whole_bit_for_bit",
    ),
    Mutant(
        "a merge does not miss the last part",
        "merge.py",
        'sorted(set(range(1, first.about["of"] + 1)) - set(numbers))',
        'sorted(set(range(1, first.about["of"])) - set(numbers))',
        f"{PARTITIONS}::test_what_is_no_whole_is_said",
    ),
    Mutant(
        "clips.parquet has the shards as they were finished",
        "output.py",
        "            for shard in sorted(self.done):\n",
        "            for shard in self.done:\n",
        "tests/test_output.py tests/test_engine.py",
    ),
    # Object stores: commits, lease, retries, reading ahead
    Mutant(
        "a store that throttles is not asked again",
        "retry.py",
        "_PASSING_STATUS = (408, 409, 425, 429)",
        "_PASSING_STATUS = (408, 409, 425)",
        "tests/test_object_output.py::test_errors_are_told_apart_by_their_status tests/test_object_input.py",
    ),
    Mutant(
        "what will never pass is tried again, and what may pass is not",
        "retry.py",
        "            if is_last or not may_pass(error):\n",
        "            if is_last or may_pass(error):\n",
        "tests/test_object_output.py::test_what_may_pass_is_tried_again_and_the_rest_is_not",
    ),
    Mutant(
        "a worker that lost the output says nothing and goes on",
        "store_lease.py",
        "        except ConfigError as error:\n            raise StoreError(str(error)) from error\n",
        "        except ConfigError:\n            return\n",
        "tests/test_object_output.py::test_a_worker_that_lost_the_output_commits_no_more",
    ),
    Mutant(
        "a holder that was seen lately is taken for dead",
        "store_hold.py",
        'if abs(time.time() - float(holder.get("time", 0))) < STALE_S:',
        'if abs(time.time() - float(holder.get("time", 0))) > STALE_S:',
        "tests/test_object_output.py::test_a_dead_holder_is_taken_over_and_a_living_one_is_not",
    ),
    Mutant(
        "shards that are to be done again keep their commit objects",
        "store_output.py",
        "        self._uncommit(self._committed.keys() - plan.done.keys())\n",
        "",
        "tests/test_object_output.py::test_shards_of_changed_sources_lose_their_commit_objects",
    ),
    Mutant(
        "one object more is fetched ahead than asked for",
        "remote.py",
        "if len(self._under_way) >= self._ahead:",
        "if len(self._under_way) > self._ahead:",
        "tests/test_object_input.py::test_objects_are_fetched_ahead_and_never_more_than_asked",
    ),
    Mutant(
        "an object that is not there counts as unreadable",
        "remote.py",
        "if isinstance(error, FileNotFoundError | IsADirectoryError):",
        "if isinstance(error, IsADirectoryError):",
        "tests/test_object_input.py::test_final_answers_are_reasons_and_not_asked_for_again",
    ),
    Mutant(
        "a store that is silent is asked for each object",
        "retrying.py",
        "self._silent = self._silent or may_pass(error)",
        "self._silent = False",
        "tests/test_object_output.py::test_objects_of_a_store_that_is_silent_are_asked_for_once",
    ),
    # The command: sweeps, job, launch, exit status, command line, redaction
    Mutant(
        "a worker that SIGTERM ended is a failed run",
        "launch.py",
        "if killed is None and -status in STOP_SIGNALS:",
        "if killed is None and status in STOP_SIGNALS:",
        "tests/test_launch.py",
    ),
    Mutant(
        "the exit status after a signal is the signal's number",
        "cli.py",
        "raise _Stopped(128 + number)",
        "raise _Stopped(number)",
        "tests/test_launch.py tests/end_to_end/test_runs.py",
    ),
    Mutant(
        "what else is printed as JSON is taken for an event",
        "launch.py",
        'return event if isinstance(event, dict) and "event" in event else None',
        "return event if isinstance(event, dict) else None",
        "tests/test_launch.py",
    ),
    Mutant(
        "queries stay in addresses that are logged",
        "record.py",
        'return _QUERY.sub(r"\\1", _USER.sub(r"\\1", text))',
        'return _USER.sub(r"\\1", text)',
        "tests/test_tracking.py::test_credentials_are_taken_out_and_the_rest_is_left",
    ),
    Mutant(
        "a failed run has the exit status 0",
        "job.py",
        '{"finished": 0, "killed": killed_status}.get(result["status"], 1)',
        '{"finished": 0, "killed": killed_status}.get(result["status"], 0)',
        "tests/test_launch.py::test_a_spec_that_was_cut_off_is_a_failure_in_one_sentence "
        "tests/end_to_end/test_runs.py::test_a_killed_worker_is_a_failed_run_with_its_signal",
    ),
    Mutant(
        "a sweep's folder takes another sweep",
        "sweep.py",
        "        if before != list(map(without_credentials, overrides)):\n",
        "        if len(before) != len(overrides):\n",
        "tests/test_resume.py tests/test_object_sweep.py::test_a_second_command_and_another_sweep_are_refused "
        "tests/end_to_end/test_resume.py::test_a_sweep_that_was_stopped_is_resumed",
    ),
    Mutant(
        "a signal that came too late for a job does not end its sweep",
        "job.py",
        'if guard.count and job.in_sweep and result["status"] != "killed":',
        'if guard.count and job.in_sweep and result["status"] == "killed":',
        "tests/test_launch.py",
    ),
    Mutant(
        "a run may skip one clip less than dataset.max_skipped",
        "limits.py",
        "if self._most is not None and self._skipped > self._most:",
        "if self._most is not None and self._skipped >= self._most:",
        "tests/test_limits.py tests/end_to_end/test_resume.py::test_a_run_that_skips_too_much_is_stopped",
    ),
    # Comparing: tracking, report, metrics, verdict
    Mutant(
        "the variant that takes most memory is recommended",
        "verdict.py",
        "each.memory_mib <= _LIGHTER * fastest.memory_mib]",
        "each.memory_mib >= _LIGHTER * fastest.memory_mib]",
        "tests/test_verdict.py",
    ),
    Mutant(
        "more counts as better of every metric",
        "comparing.py",
        "reverse=ranking_metric(by).direction is Direction.HIGHER)",
        "reverse=True)",
        "tests/test_comparing.py",
    ),
    Mutant(
        "twice as long counts as twice as good",
        "metrics.py",
        "(value, reference) if self.direction is Direction.HIGHER else (reference, value)",
        "(value, reference)",
        "tests/test_metrics.py",
    ),
    Mutant(
        "a sweep with failed jobs is FINISHED in MLflow",
        "tracking.py",
        '"FAILED" if count["failed"] or not results else "FINISHED"',
        '"FAILED" if not results else "FINISHED"',
        "tests/test_tracking.py::test_the_parent_of_a_sweep_says_how_its_jobs_went",
    ),
    Mutant(
        "the regression check fails the better run",
        "report.py",
        "elif not (share := judge.goodness(value, expected)) >= least:",
        "elif not (share := judge.goodness(value, expected)) <= least:",
        "tests/test_report.py::test_the_regression_check",
    ),
    Mutant(
        "MLFLOW_TRACKING_URI goes before the address that was given",
        "mlflow_client.py",
        'if given := tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):',
        'if given := os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri:',
        "tests/test_tracking.py::test_the_store_is_the_given_one_else_the_environments_else_local",
    ),
    # Ray
    Mutant(
        "a machine that goes is the fault of the shards that were under way there",
        "ray_pool.py",
        "self._deaths[shard] += not by_machine",
        "self._deaths[shard] += 1",
        "tests/test_ray_pool.py::test_machines_that_go_are_no_fault_of_their_shards_however_often",
    ),
    Mutant(
        "a shard that an actor takes back stays done",
        "ray_engine.py",
        "                self.writer.record(ShardEntry(shard, undone=True))\n",
        "",
        "tests/test_ray_actor.py::test_shards_that_an_actor_takes_back_are_left_to_be_done",
    ),
)

"""An output in an object store: the run works in a folder of this machine, and the store has all that is done.

The folder is a cache that may be deleted at any time: a command begins by emptying it and getting the run's state from
the store.  A shard is done when its commit object, ``.runner/commits/shard-NNNNN.json`` (its line of the journal), is
there, which is put last, after the shard's files; the journal is made anew from those objects.  None of them is ever
replaced (``runner.output.remote.names``), and only this command, which has the output, removes any: what is of no
shard that is
done.  result.json is the last object of a run, but for the note of its MLflow run, and is taken away while it goes on.

``RemoteRun`` is the command's side, ``runner.output.remote.writer`` the worker's.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.cleanup import at_cleanup
from runner.core.errors import ConfigError, RunnerError, StoreError
from runner.core.failures import failure_of
from runner.core.files import write_atomic
from runner.core.layout import (
    CLIP_PARTS,
    DESCRIPTIONS,
    EMBEDDINGS,
    FOLDERS,
    HOLDER,
    IDENTITY,
    JOURNAL,
    LOCK,
    LOG,
    MANIFEST,
    PLAN,
    RESULT,
    SESSIONS,
    STATE,
    SWEEP_FILE,
    TFRECORD,
    TRACKING,
    WORKER_LOCK,
)
from runner.core.paths import is_url, staging_dir
from runner.output.remote.commits import (
    FAILED_PUT_S,
    _commits,
    commit_name,
    is_complete,
    read_commits,
    sampled,
    sizes_of_shards,
)
from runner.output.remote.names import name_in_folder, strays
from runner.output.remote.npz import shards_lacking_npz
from runner.output.remote.orphans import ORPHAN_S, wait_for_stale_worker
from runner.output.state.journal import clips_part, read_journal, size_and_sha256, to_line
from runner.output.state.plan import plan_id, read_plan
from runner.storage.lease import Lease
from runner.storage.object_store import Store

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.output.state.journal import ShardEntry
    from runner.output.state.plan import Plan

log = logging.getLogger(__name__)

_HYDRAS = (".hydra", LOG)
"""What Hydra writes into the folder of a sweep's job before the job begins."""

_STATE_FILES = (PLAN, MANIFEST, IDENTITY, SESSIONS)

_open: dict[Path, RemoteRun] = {}


def take(folder: Path, config: RunConfig, in_sweep: bool = False) -> RemoteRun:
    """Take the output of a run for this command, and get its state into the working folder; see ``take_output``."""
    folder = folder.absolute()
    if folder not in _open:
        _open[folder] = RemoteRun(folder, config, in_sweep)
        at_cleanup(release_all)
    return _open[folder]


def release_all() -> None:
    """Give up every output that this command still has."""
    for output in list(_open.values()):
        output.release()


class RemoteRun:
    """A run's output in an object store, for as long as this command has it.

    Args:
        folder: the working folder, which this command has claimed.
        config: the run's.
        in_sweep: whether it is a job of a sweep, in whose folder Hydra has written already.
    """

    def __init__(self, folder: Path, config: RunConfig, in_sweep: bool = False) -> None:
        assert config.output.dir is not None
        self._folder = folder
        self._store = Store(config.output.dir, config.output.upload_timeout_s)
        self._pictures = config.profile.plots and config.profile.projection != "none"
        self.hold = Lease(self._store)
        self._digests: dict[str, tuple[int, str]] = {}
        self._committed: dict[int, ShardEntry] = {}
        self._present: Mapping[str, int] = {}
        self._plan_id = ""
        self._has_result = False
        self._shards = 0
        self.hold.take()
        try:
            wait_for_stale_worker(folder, config.engine.shutdown_timeout_s + ORPHAN_S)
            _empty(folder, _HYDRAS if in_sweep else ())
            with _append_after_download(folder / LOG):
                self._restore_state()
            self.hold.confirm()
        except BaseException:
            self.hold.release()
            raise

    def spec(self) -> dict[str, Any]:
        """What the worker needs to know of it."""
        fenced = self._store.conditions is not None
        return {"url": self._store.url, "token": self.hold.token, "plan": self._plan_id, "fenced": fenced}

    def begin_session(self, plan: Plan) -> None:
        """Have the plan in the store, before anything of it is done.

        Shards that are no longer done lose their commit objects first: a plan that is newer than they are would have
        them believed.  Then go the files of shards that are not done.
        """
        self._shards, self._plan_id = len(plan.shards), plan.id
        self._revoke_commits(self._committed.keys() - plan.done.keys())
        self._committed = {number: self._committed[number] for number in self._committed.keys() & plan.done.keys()}
        self._remove(strays(self._present, self._committed.values()))
        if self._has_result:
            self._store.remove(RESULT)
        for name in (MANIFEST, SESSIONS, PLAN):
            if self._digests.get(name) != size_and_sha256(self._folder / STATE / name):
                self._store.put(self._folder / STATE / name, f"{STATE}/{name}")

    def get_parts(self, shards: Iterable[int]) -> None:
        """Get the parts of clips.parquet of these shards."""
        get_named(self._store, self._folder, [clips_part(self._committed[number]) for number in shards])

    def download_sampled_shards(self) -> None:
        """Get the shards that the map is drawn from, and that an earlier session put."""
        if not self._pictures:
            return
        try:
            done, _ = read_journal(self._folder / STATE / JOURNAL)
            wanted = sampled(self._shards) & done.keys()
            files = [name for number in wanted for name in done[number].files if name.startswith(f"{EMBEDDINGS}/")]
            get_named(self._store, self._folder, files)
        except (RunnerError, OSError) as error:
            log.warning("projection covers this attempt's shards only: %s", error)

    def get_embeddings(self, finished: bool) -> None:
        """Get all files of embeddings that are no longer in the working folder.

        Args:
            finished: whether the run is; one that failed waits less for the store.

        Raises:
            StoreError: the store doesn't give them, or there is no room for them.
        """
        limit = None if finished else min(FAILED_PUT_S, self._store.timeout_s)
        try:
            for folder in FOLDERS:
                self._store.get_below(folder, self._folder, limit)
        except OSError as error:
            raise StoreError(
                f"{self._store.url}: its embeddings can't be brought to {self._folder} ({error})"
            ) from error

    def upload_remaining(self, result: dict[str, Any]) -> None:
        """Put all files but the shards' own, result.json and tracking.json; look whether the shards' are all there.

        Args:
            result: the run's, in the working folder as result.json; both become those of a failed run if that fails.
        """
        rest = [path for path in self._folder.rglob("*") if path.is_file() and self._is_rest(path)]
        names = [path.relative_to(self._folder).as_posix() for path in rest]
        self._put(rest, names, result, self._tidy)

    def put_result(self, result: dict[str, Any]) -> None:
        """Put result.json, the last of a run's own; what fails is told as by ``upload_remaining``."""
        self._put([self._folder / RESULT], [RESULT], result)

    def put_tracking(self) -> None:
        """Put the note of the MLflow run, if there is one: any machine goes on with it then.  Trouble is a warning."""
        try:
            if (path := self._folder / TRACKING).exists() and self.hold.is_held():
                self._store.put(path, TRACKING, min(FAILED_PUT_S, self._store.timeout_s))
        except (RunnerError, OSError) as error:
            log.warning("could not save the MLflow run id next to the output: %s", error)

    def release(self) -> None:
        """Give the output up."""
        self.hold.release()
        _open.pop(self._folder, None)

    def _put(
        self,
        paths: Sequence[Path],
        names: Sequence[str],
        result: dict[str, Any],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        finished = result["status"] == "finished"
        limit = None if finished else min(FAILED_PUT_S, self._store.timeout_s)
        try:
            if not self.hold.is_held():
                raise StoreError(f"{self._store.url} was taken by another command: nothing more is put there")
            self._store.each(lambda path, name: self._store.put(path, name, limit), paths, names)
            if finished:
                then()
        except (RunnerError, OSError) as error:
            log.error("%s", error)
            if finished:
                failure = {**failure_of(error)._asdict(), "signal": None}
                result |= {"status": "failed", "exit_status": 1, "failure": {**failure, "log_tail": ""}}
                write_atomic(self._folder / RESULT, json.dumps(result, indent=2))

    def _tidy(self) -> None:
        """Remove what is of no shard, once all that is of one is there.

        Raises:
            StoreError: something of a shard is gone.
        """
        done, _ = read_journal(self._folder / STATE / JOURNAL)
        present = sizes_of_shards(self._store, self._store.sizes(STATE))
        gone = [n for n, entry in done.items() if commit_name(n) not in present or not is_complete(entry, present)]
        if gone:
            raise StoreError(
                f"{self._store.url}: {len(gone):,} shards that were put there (the first: {gone[0]}) are no longer "
                "whole: find out what else writes there, and rerun the same command to resume"
            )
        self._remove(strays(present, done.values()))

    def _is_rest(self, path: Path) -> bool:
        parts = path.relative_to(self._folder).parts
        if path.name.startswith(".") and path.name.endswith(".tmp"):
            return False
        if parts[0] == STATE:
            return len(parts) == 2 and parts[1] not in (LOCK, HOLDER, WORKER_LOCK)
        if parts[0] in FOLDERS:
            return "/".join(parts) in DESCRIPTIONS
        return len(parts) > 1 or parts[0] not in (RESULT, TRACKING)

    def _restore_state(self) -> None:
        """Get the run's state; the journal is made of the commit objects."""
        top = self._store.top()
        state = self._store.sizes(STATE)
        if f"{STATE}/{PLAN}" not in state:
            if any(name in top for name in (RESULT, *FOLDERS, SWEEP_FILE)):
                raise ConfigError(f"output.dir={self._store.url} holds something else: name another folder")
            self._revoke_commits(_commits(state))
            return
        names = [name for name, size in top.items() if size is not None]
        names += [f"{STATE}/{name}" for name in _STATE_FILES if f"{STATE}/{name}" in state]
        present = sizes_of_shards(self._store, state)
        names += [name for name in present if name == f"{TFRECORD}/labels.csv"]
        self._store.each(self._store.get, names, [self._folder / name for name in names])
        for name in _STATE_FILES:
            if (path := self._folder / STATE / name).exists():
                self._digests[name] = size_and_sha256(path)
        self._has_result = RESULT in top
        self._present = present
        plan = read_plan(self._folder)
        assert plan is not None
        self._make_journal(read_commits(self._store, state), present, plan_id(plan))

    def _make_journal(self, commits: Mapping[int, ShardEntry | None], present: Mapping[str, int], plan: str) -> None:
        ours = [entry for entry in commits.values() if entry is not None and entry.plan == plan]
        whole = [entry for entry in ours if is_complete(entry, present)]
        lacking = shards_lacking_npz(self._store, whole)
        whole = [entry for entry in whole if entry.shard not in lacking]
        self._committed = {entry.shard: entry for entry in whole}
        wrong = sorted(commits.keys() - self._committed.keys())
        (self._folder / STATE / JOURNAL).write_text("".join(f"{to_line(entry)}\n" for entry in whole), encoding="utf-8")
        if wrong:
            log.warning("re-running %d damaged or incomplete shards in %s", len(wrong), self._store.url)
            self._revoke_commits(wrong)

    def _revoke_commits(self, shards: Iterable[int]) -> None:
        self._remove([commit_name(number) for number in shards])

    def _remove(self, names: Sequence[str]) -> None:
        self._store.each(self._store.remove, names)


def get_named(store: Store, folder: Path, names: Iterable[str]) -> None:
    """Get objects of shards into a folder, under the names that they have there, which are not there already."""
    paths = {name: folder / name_in_folder(name) for name in names}
    missing = [name for name, path in paths.items() if not path.exists()]
    store.each(store.get, missing, [paths[name] for name in missing])


@contextmanager
def _append_after_download(path: Path) -> Iterator[None]:
    """What a log says already comes after what the store has of it, if that is got meanwhile."""
    said = path.read_bytes() if path.exists() else b""
    yield
    if said and path.read_bytes() != said:
        with path.open("ab") as file:
            file.write(said)


def _empty(folder: Path, kept: Collection[str]) -> None:
    """Remove what an earlier command left in the working folder, locks and what is to be kept aside."""
    for path in (*folder.iterdir(), *(folder / STATE).iterdir()):
        if path.name in (STATE, *kept) or (path.parent.name == STATE and path.name in (LOCK, HOLDER)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / STATE / CLIP_PARTS).mkdir()


def check_staging_dir(key: str, folder: Path, config: RunConfig) -> None:
    """Whether the folder that Hydra was given is the one of ``output.dir``, which is a URL: it is going to be emptied.

    Raises:
        ConfigError: it is another one.
    """
    url = config.output.dir
    assert url is not None
    if folder != staging_dir(url, Path(config.paths.outputs).expanduser()).absolute():
        raise ConfigError(f"{key}={folder} can't be had with output.dir={url}: leave {key} out, or give paths.outputs")


def take_output(folder: Path, config: RunConfig, in_sweep: bool = False) -> RemoteRun | None:
    """The output of a run in an object store, taken for this command; None where it stays on a file system.

    Args:
        folder: the run's (working) folder, which the command has claimed.
        config: the run's configuration.
        in_sweep: whether the run is a job of a sweep.

    Raises:
        ConfigError: another command has it, it can't be used, or it holds something else.
        StoreError: the store doesn't answer.
    """
    if not is_url(config.output.dir):
        return None

    return take(folder, config, in_sweep)

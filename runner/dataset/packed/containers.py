"""The containers of a packed data set: one file, all below a folder or an object store's prefix, or by a pattern."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from runner.core.errors import DatasetError
from runner.core.paths import is_url
from runner.dataset.listing import walk, walk_store
from runner.storage.filesystem import open_store, stamp_of
from runner.storage.retry import with_retries

_BRACES = re.compile(r"\{([^{}]*)\}")

_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")

_WILD = re.compile(r"[*?\[]")

_MOST_NAMES = 1_000_000

_THREADS = 16

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")


@dataclass(frozen=True)
class Container:
    """A file that clips are packed in.

    ``name`` is relative to the data set's root; ``size`` (bytes) is −1 where there is no such file; ``stamp`` is its
    time of modification in ns, or a number made of its ETag, −1 where neither is known.
    """

    place: bytes
    name: str
    size: int
    stamp: int

    @property
    def url(self) -> str | None:
        """The URL of one in an object store."""
        place = os.fsdecode(self.place)
        return place if is_url(place) else None


def find_containers(
    given: str, extensions: Sequence[str], timeout_s: float, ignored: Counter[str]
) -> tuple[str, list[Container]]:
    """The data set's root and its containers, in the order of their names' bytes, or of the numbers in braces.

    Args:
        given: a file, a folder or prefix, or a pattern with ``{000..123}``, ``{a,b}``, ``*``; a path or URL.
        extensions: of containers, as ``.tar``.
        timeout_s: how long a store is asked.
        ignored: counts what is left out.

    Raises:
        DatasetError: there are none, or they are compressed.
    """
    if not is_url(given):
        given = os.path.abspath(os.path.expanduser(given))
    spelled = _expanded(given)
    is_one = spelled == [given] and not _WILD.search(given)
    if is_one and not given.lower().endswith((*extensions, *COMPRESSED)) and (is_url(given) or os.path.isdir(given)):
        root = given.rstrip("/")
        found = [each for each in _below(root, timeout_s, ignored) if _is_wanted(each, extensions, ignored)]
    else:
        _refuse_compressed(given, [name for name in spelled if name.lower().endswith(COMPRESSED)])
        root = _static_folder(spelled)
        if is_url(given) and root.count("/") < 2:
            raise DatasetError(f"dataset.path={given} is of several buckets: give one, and a run to each")
        found = _named(root, spelled, timeout_s, ignored)
    if not any(each.size >= 0 for each in found):
        compressed = next((name for name in ignored if name in COMPRESSED), None)
        _refuse_compressed(given, [compressed] if compressed else [])
        raise DatasetError(
            f"dataset.path={given} has no {' or '.join(extensions)} file: give one, a folder of them, or a pattern "
            "such as part-{000..123}" + extensions[0]
        )
    return root, found


def _refuse_compressed(given: str, compressed: Sequence[str]) -> None:
    if compressed:
        raise DatasetError(
            f"dataset.path={given} is compressed ({compressed[0]}), and a compressed tar can't be read from a member "
            "on: decompress it, as with gunzip; audio formats are compressed enough"
        )


def _expanded(pattern: str) -> list[str]:
    """The names that braces stand for: ``{000..123}`` and ``{a,b}``."""
    names = [pattern]
    while any(braces := [_BRACES.search(name) for name in names]):
        more = []
        for name, brace in zip(names, braces, strict=True):
            if brace is None:
                more.append(name)
                continue
            more += [name[: brace.start()] + each + name[brace.end() :] for each in _alternatives(brace[1], pattern)]
            if len(more) > _MOST_NAMES:
                raise DatasetError(f"dataset.path={pattern} stands for more than {_MOST_NAMES:,} files: give fewer")
        names = more
    return names


def _alternatives(inside: str, pattern: str) -> list[str]:
    if numbers := _NUMBERS.fullmatch(inside):
        first, last = int(numbers[1]), int(numbers[2])
        if first > last or last - first >= _MOST_NAMES:
            raise DatasetError(
                f"dataset.path={pattern}: {{{inside}}} is no range: give first and last, as {{000..123}}"
            )
        return [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    return inside.split(",")


def _static_folder(names: Sequence[str]) -> str:
    """The deepest folder that all names are in, without the parts that stand for several."""
    folders = [_WILD.split(name)[0].rpartition("/")[0].split("/") for name in names]
    return "/".join(os.path.commonprefix(folders)) or "/"  # noqa: RUF071  (of lists)


def _below(root: str, timeout_s: float, ignored: Counter[str]) -> Iterator[Container]:
    listed = walk_store(root, timeout_s) if is_url(root) else walk(Path(root), ignored)
    for name, size, stamp in listed:
        yield Container(os.fsencode(f"{root.rstrip('/')}/{name}"), name, size, stamp)


def _is_wanted(container: Container, extensions: Sequence[str], ignored: Counter[str]) -> bool:
    name = container.name.lower()
    if name.endswith(tuple(extensions)):
        return True
    kind = next((each for each in COMPRESSED if name.endswith(each)), os.path.splitext(name)[1])
    ignored[kind or "(no extension)"] += 1
    return False


def _named(root: str, spelled: Sequence[str], timeout_s: float, ignored: Counter[str]) -> list[Container]:
    """The containers of these names and patterns; one that is named and not there has no size."""
    below = len(root.rstrip("/")) + 1
    if any(_WILD.search(name) for name in spelled):
        patterns = [name[below:] for name in spelled]
        return [
            each for each in _below(root, timeout_s, ignored) if any(fnmatchcase(each.name, way) for way in patterns)
        ]
    with ThreadPoolExecutor(_THREADS) as threads:
        stamps = threads.map(partial(_stamp, timeout_s=timeout_s), spelled)
        return [Container(os.fsencode(name), name[below:], *stamp) for name, stamp in zip(spelled, stamps, strict=True)]


def _stamp(name: str, timeout_s: float) -> tuple[int, int]:
    """(size, time of modification) of a file or object; −1 where there is none.

    Raises:
        DatasetError: the store does not say.
    """
    try:
        if not is_url(name):
            found = os.stat(name)
            return found.st_size, found.st_mtime_ns
        store, path = open_store("dataset.path", name, timeout_s)
        return stamp_of(with_retries(lambda: store.info(path), timeout_s))
    except FileNotFoundError:
        return -1, -1
    except Exception as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{name} can't be looked at ({type(error).__name__}: {error}): check network, permissions and credentials"
        ) from error

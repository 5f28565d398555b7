"""Finds the containers of a packed data set: one file, all below a folder or URL, or those of a pattern."""

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
from runner.storage.driver import call_driver
from runner.storage.filesystem import object_stats, open_store
from runner.storage.retry import with_retries

_BRACES = re.compile(r"\{([^{}]*)\}")

_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")

_WILDCARD = re.compile(r"[*?\[]")

_MAX_NAMES = 1_000_000

_THREADS = 16

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")


@dataclass(frozen=True)
class Container:
    """A file that clips are packed in.

    Attributes:
        path: absolute, or a URL, in the file system's bytes.
        name: relative to the data set's root.
        size: bytes; −1 if there is no such file.
        mtime_ns: time of modification in ns, or a number made of its ETag; −1 where neither is known.
    """

    path: bytes
    name: str
    size: int
    mtime_ns: int

    @property
    def url(self) -> str | None:
        """Its URL; None for a file."""
        path = os.fsdecode(self.path)
        return path if is_url(path) else None


def find_containers(
    pattern: str, extensions: Sequence[str], timeout_s: float, ignored: Counter[str]
) -> tuple[str, list[Container]]:
    """Return the data set's root and its containers, in the order of their names' bytes, or of the numbers in braces.

    Args:
        pattern: a file, a folder or prefix, or a pattern with ``{000..123}``, ``{a,b}``, ``*``; a path or URL.
        extensions: of containers, as ``.tar``.
        timeout_s: for each request to a store.
        ignored: counts other files.

    Raises:
        DatasetError: there are none, or they are compressed.
    """
    if not is_url(pattern):
        pattern = os.path.abspath(os.path.expanduser(pattern))
    names = _expand_braces(pattern)
    is_single = names == [pattern] and not _WILDCARD.search(pattern)
    is_file = pattern.lower().endswith((*extensions, *COMPRESSED)) or not (is_url(pattern) or os.path.isdir(pattern))
    if is_single and not is_file:
        root = pattern.rstrip("/")
        listed = _list_below(root, timeout_s, ignored)
        containers = [container for container in listed if _is_container(container, extensions, ignored)]
    else:
        _refuse_compressed(pattern, [name for name in names if name.lower().endswith(COMPRESSED)])
        root = _common_folder(names)
        if is_url(pattern) and root.count("/") < 2:
            raise DatasetError(f"dataset.path={pattern} is of several buckets: give one, and run each on its own")
        containers = _find_named(root, names, timeout_s, ignored)
    if not any(container.size >= 0 for container in containers):
        compressed = next((name for name in ignored if name in COMPRESSED), None)
        _refuse_compressed(pattern, [compressed] if compressed else [])
        raise DatasetError(
            f"dataset.path={pattern} has no {' or '.join(extensions)} file: give one, a folder of them, or a pattern "
            "such as part-{000..123}" + extensions[0]
        )
    return root, containers


def _refuse_compressed(pattern: str, compressed: Sequence[str]) -> None:
    if compressed:
        raise DatasetError(
            f"dataset.path={pattern} is compressed ({compressed[0]}), and single members of a compressed tar can't be "
            "read: decompress it, as with gunzip; audio formats are compressed enough"
        )


def _expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern with ``{000..123}`` and ``{a,b}``."""
    names = [pattern]
    while any(braces := [_BRACES.search(name) for name in names]):
        expanded = []
        for name, brace in zip(names, braces, strict=True):
            if brace is None:
                expanded.append(name)
                continue
            before, after = name[: brace.start()], name[brace.end() :]
            expanded += [before + word + after for word in _alternatives(brace[1], pattern)]
            if len(expanded) > _MAX_NAMES:
                raise DatasetError(f"dataset.path={pattern} stands for more than {_MAX_NAMES:,} files: give fewer")
        names = expanded
    return names


def _alternatives(inside: str, pattern: str) -> list[str]:
    if numbers := _NUMBERS.fullmatch(inside):
        first, last = int(numbers[1]), int(numbers[2])
        if first > last or last - first >= _MAX_NAMES:
            raise DatasetError(
                f"dataset.path={pattern}: {{{inside}}} is not a range: give first and last, as {{000..123}}"
            )
        return [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    return inside.split(",")


def _common_folder(names: Sequence[str]) -> str:
    """Return the deepest folder above all names that has no wildcard."""
    folders = [_WILDCARD.split(name)[0].rpartition("/")[0].split("/") for name in names]
    return "/".join(os.path.commonprefix(folders)) or "/"  # noqa: RUF071  (of lists)


def _list_below(root: str, timeout_s: float, ignored: Counter[str]) -> Iterator[Container]:
    listed = walk_store(root, timeout_s) if is_url(root) else walk(Path(root), ignored)
    for name, size, mtime_ns in listed:
        yield Container(os.fsencode(f"{root.rstrip('/')}/{name}"), name, size, mtime_ns)


def _is_container(container: Container, extensions: Sequence[str], ignored: Counter[str]) -> bool:
    name = container.name.lower()
    if name.endswith(tuple(extensions)):
        return True
    extension = next((suffix for suffix in COMPRESSED if name.endswith(suffix)), os.path.splitext(name)[1])
    ignored[extension or "(no extension)"] += 1
    return False


def _find_named(root: str, names: Sequence[str], timeout_s: float, ignored: Counter[str]) -> list[Container]:
    """Return the containers of these names or wildcards; a name without a file has size −1."""
    prefix = len(root.rstrip("/")) + 1
    if any(_WILDCARD.search(name) for name in names):
        patterns = [name[prefix:] for name in names]
        return [
            container
            for container in _list_below(root, timeout_s, ignored)
            if any(fnmatchcase(container.name, pattern) for pattern in patterns)
        ]
    with ThreadPoolExecutor(_THREADS) as threads:
        stats = threads.map(partial(_stat, timeout_s=timeout_s), names)
        return [Container(os.fsencode(name), name[prefix:], *stat) for name, stat in zip(names, stats, strict=True)]


def _stat(name: str, timeout_s: float) -> tuple[int, int]:
    """Return size and time of modification of a file or object; (−1, −1) if there is none.

    Raises:
        DatasetError: the store doesn't answer.
    """
    try:
        if not is_url(name):
            status = os.stat(name)
            return status.st_size, status.st_mtime_ns
        store, path = open_store("dataset.path", name, timeout_s)
        return object_stats(with_retries(lambda: call_driver(store, "info", path), timeout_s))
    except FileNotFoundError:
        return -1, -1
    except Exception as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{name} can't be read ({type(error).__name__}: {error}): check network, permissions and credentials"
        ) from error

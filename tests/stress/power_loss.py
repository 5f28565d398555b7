"""What a disk may hold after a loss of power, by the calls made up to then.

A file's data are on the disk for certain once the file was flushed, a name once its folder was; whatever came since may
be there or not, in part and in any order.  POSIX promises no more, and file systems have taken every liberty (ALICE,
Pillai et al. 2014, lists them).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.stress.disk import Call

Contents = dict[str, "bytes | None"]
"""Files below a folder by path; None for a folder."""
_WITHOUT_NAME = getattr(os, "O_TMPFILE", -1)
Choice = Callable[[str], bool]
"""Whether a change (to ``data`` or to ``names``) that was not flushed is on the disk all the same."""


@dataclass(eq=False)
class File:
    """A file: what is on the disk for certain, and what was written since: (place, data), or (size, None) for a cut."""

    certain: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)


@dataclass(eq=False)
class Folder:
    """A folder: its names on the disk for certain, as the process sees them, and the changes since the last flush.

    A change gives names what is there then, None for nothing.
    """

    certain: dict[str, File | Folder] = field(default_factory=dict)
    seen: dict[str, File | Folder] = field(default_factory=dict)
    since: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, changes: dict[str, File | Folder | None]) -> None:
        """Change names at once."""
        self.since.append(changes)
        _change(self.seen, changes)


class Disk:
    """A folder's files as calls change them; links are to files elsewhere, which are certain.

    Args:
        root: the folder of the calls' paths.
        before: a folder with what was on the disk before them, for certain.
    """

    def __init__(self, root: Path, before: Path) -> None:
        self._root = root
        self._top = _read(before)
        self._open: dict[int, File | Folder] = {}

    def apply(self, call: Call) -> bool:
        """Take a call in; whether it changes what the disk may hold."""
        if call.fd == -2 or (call.kind == "open" and call.fd < 0):  # it failed
            return False
        match call.kind:
            case "open":
                return self._opened(call)
            case "close":
                self._open.pop(call.fd)
                return False
            case "write" | "truncate":
                file = self._open[call.fd]
                assert isinstance(file, File)
                file.since.append((call.number, call.data if call.kind == "write" else None))
            case "fsync":
                _flush(self._open[call.fd])
            case "mkdir":
                folder, name = self._place(call.path)
                folder.change({name: Folder()})
            case "link":
                folder, name = self._place(call.second)
                folder.change({name: File(Path(call.path).read_bytes())})
            case "unlink" | "rmdir":
                folder, name = self._place(call.path)
                folder.change({name: None})
            case "rename":
                (folder, name), (other, new) = self._place(call.path), self._place(call.second)
                assert folder is other, "a rename between folders"
                folder.change({name: None, new: folder.seen[name]})
            case _:
                raise NotImplementedError(call.kind)
        return True

    def after_power_loss(self, choice: Choice) -> Contents:
        """What there may be."""
        found: Contents = {}
        _collect(self._top, "", choice, found)
        return found

    def _place(self, path: str) -> tuple[Folder, str]:
        """The folder that holds a path's last name, and that name."""
        *above, name = Path(path).relative_to(self._root).parts
        folder = self._top
        for each in above:
            inner = folder.seen[each]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    def _opened(self, call: Call) -> bool:
        if Path(call.path) == self._root:
            self._open[call.fd] = self._top
            return False
        if call.number & _WITHOUT_NAME == _WITHOUT_NAME:
            self._open[call.fd] = File()
            return False
        folder, name = self._place(call.path)
        is_new = name not in folder.seen
        if is_new:
            folder.change({name: File()})
        found = self._open[call.fd] = folder.seen[name]
        is_cut = isinstance(found, File) and not is_new and bool(call.number & os.O_TRUNC)
        if is_cut:
            assert isinstance(found, File)
            found.since.append((0, None))
        return is_new or is_cut


def choices(seed: int) -> dict[str, Choice]:
    """What a disk may have kept: nothing, all, names without data, data without names, and anything."""
    rng = random.Random(seed)
    return {
        "nothing": lambda kind: False,
        "all": lambda kind: True,
        "names": lambda kind: kind == "names",
        "data": lambda kind: kind == "data",
        "some": lambda kind: rng.random() < 0.5,
    }


def restore(contents: Contents, folder: Path) -> None:
    """Make an empty folder hold these."""
    for name, data in contents.items():
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)


def _read(path: Path) -> Folder:
    folder = Folder()
    for each in path.iterdir():
        folder.certain[each.name] = _read(each) if each.is_dir() else File(each.read_bytes())
    folder.seen = dict(folder.certain)
    return folder


def _change(names: dict[str, File | Folder], changes: dict[str, File | Folder | None]) -> None:
    for name, there in changes.items():
        if there is None:
            names.pop(name, None)
        else:
            names[name] = there


def _flush(flushed: File | Folder) -> None:
    if isinstance(flushed, File):
        flushed.certain = _written(flushed.certain, flushed.since)
    else:
        flushed.certain = dict(flushed.seen)
    flushed.since = []


def _written(data: bytes, changes: Iterable[tuple[int, bytes | None]]) -> bytes:
    found = bytearray(data)
    for place, more in changes:
        if more is None:
            del found[place:]
        else:
            found.extend(bytes(max(0, place - len(found))))  # a hole
            found[place : place + len(more)] = more
    return bytes(found)


def _collect(folder: Folder, prefix: str, choice: Choice, found: Contents) -> None:
    names = dict(folder.certain)
    for changes in folder.since:
        if choice("names"):
            _change(names, changes)
    for name, there in sorted(names.items()):
        if isinstance(there, Folder):
            found[prefix + name] = None
            _collect(there, f"{prefix}{name}/", choice, found)
        else:
            found[prefix + name] = _written(there.certain, [each for each in there.since if choice("data")])

"""What a tar holds, as WebDataset packs data sets: audio members, and beside them members that say the label.

Only headers are read, and of the labels' members the content.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

from runner.dataset.packed.address import TarMember, Unread, tail

_BLOCK = 512

_MOST_READ = 1 << 20
"""Bytes of one header, or label, at most: what claims more is broken, or was made to take memory."""


@dataclass
class Contents:
    """What was found in a container: of each clip its name there, the tail of its address, its bytes and label.

    A clip without a name has the number of its row for one.  ``problem`` (reason, detail) says why that is not all.
    """

    names: list[bytes | None] = field(default_factory=list)
    tails: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    problem: tuple[str, str] | None = None


class _Bounded:
    """A file for ``tarfile``, whose headers may claim any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def scan_tar(file: IO[bytes], container: bytes, extensions: frozenset[str], label_from: str) -> Contents:
    """List the audio members of a tar.

    Args:
        file: the tar, open; each read of it gives as many bytes as are asked for, if it has them.
        container: what it is called in addresses.
        extensions: of audio members, as ``.flac``.
        label_from: ``parent`` (folder), ``none``, or the extension of a member that holds it: ``cls``, ``json:KEY``.

    Raises:
        ClipError: the file can't be read, where reading it raises that.
    """
    scan = _Scan(file, container, extensions, label_from)
    try:
        scan.run()
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        scan.break_off(f"{type(error).__name__}: {error}")
    return scan.contents()


class _Scan:
    def __init__(self, file: IO[bytes], container: bytes, extensions: frozenset[str], label_from: str) -> None:
        self._file = file
        self._container = container
        self._extensions = extensions
        self._from_parent = label_from == "parent"
        extension, _, self._key = label_from.partition(":")
        self._label_suffix = None if label_from in ("parent", "none") else f".{extension.lower()}"
        self._places: dict[bytes, TarMember] = {}
        """Of every regular member, for links to it."""
        self._clips: dict[bytes, TarMember | Unread] = {}
        self._labels: dict[bytes, str | None] = {}
        self._found = Contents()
        self._end = 0

    def run(self) -> None:
        archive = tarfile.open(fileobj=_Bounded(self._file), mode="r:", encoding="utf-8", errors="surrogateescape")  # type: ignore[call-overload]  # noqa: SIM115
        while member := archive.next():
            if archive.offset <= self._end:
                raise tarfile.ReadError("a member of negative size")
            self._end = archive.offset
            archive.members = []  # which it would keep
            self._take(member)
        self._file.seek(archive.offset)
        last = self._file.read(_BLOCK)
        if last.count(0) != len(last) or (not last and not self._end):
            raise tarfile.ReadError("no tar" if not self._end else "no header where one should be")

    def break_off(self, why: str) -> None:
        """Note that the tar can't be read further."""
        if not self._end:
            self._found.problem = "unsupported_format", f"it can't be read as a tar ({why})"
        else:
            self._found.problem = "truncated", f"the tar breaks off at byte {self._end:,} ({why}): members may be lost"

    def contents(self) -> Contents:
        """All that was found."""
        found = self._found
        for name, place in self._clips.items():
            found.names.append(name)
            found.tails.append(tail(place))
            found.sizes.append(place.size if isinstance(place, TarMember) else 0)
            found.labels.append(self._labels.get(_sample(name)))
        return found

    def _take(self, member: tarfile.TarInfo) -> None:
        if member.isdir():
            return
        name = _plain(os.fsencode(member.name)).replace(b"\0", b"\\x00")
        suffix = os.path.splitext(os.fsdecode(name))[1].lower()
        place = self._place(name, member, suffix)
        if isinstance(place, TarMember):
            self._places[name] = place
        if suffix in self._extensions:
            if name in self._clips:
                self._found.ignored["(replaced by a later member)"] += 1
                del self._clips[name]  # which unpacking overwrites
            self._clips[name] = place
            return
        self._found.ignored[suffix or "(no extension)"] += 1
        if (
            self._label_suffix
            and isinstance(place, TarMember)
            and os.fsdecode(name).lower().endswith(self._label_suffix)
        ):
            self._labels[_sample(name)] = self._label(place)

    def _place(self, name: bytes, member: tarfile.TarInfo, suffix: str) -> TarMember | Unread:
        if member.islnk() or member.issym():
            target = os.fsencode(member.linkname)
            if member.issym():
                target = posixpath.join(posixpath.dirname(name), target)
            if found := self._places.get(_plain(posixpath.normpath(target))):
                return found._replace(suffix=suffix)
            return Unread(
                self._container, "missing", f"a link to {member.linkname}, which the tar does not have before"
            )
        if not member.isreg():
            return Unread(self._container, "not_a_file", "a pipe or device in a tar")
        if member.sparse is not None:
            return Unread(self._container, "unsupported_format", "a sparse member: pack it without --sparse")
        self._file.seek(member.offset_data - _BLOCK)
        return TarMember(self._container, member.offset_data, member.size, zlib.crc32(self._file.read(_BLOCK)), suffix)

    def _label(self, place: TarMember) -> str | None:
        if place.size > _MOST_READ:
            self._found.ignored["(label that is too long)"] += 1
            return None
        self._file.seek(place.offset)
        try:
            text = self._file.read(place.size).decode("utf-8").replace("\0", "").strip()
            value = json.loads(text)[self._key] if self._key else text
        except (ValueError, KeyError, TypeError, RecursionError):
            self._found.ignored["(label that can't be read)"] += 1
            return None
        return value if isinstance(value, str) else None if value is None else json.dumps(value)


def _plain(name: bytes) -> bytes:
    """A member's name as the file system has it once unpacked."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


def _sample(name: bytes) -> bytes:
    """What the members of a WebDataset sample have in common: the name up to the first dot of the file's."""
    folder, slash, file = name.rpartition(b"/")
    return folder + slash + file.partition(b".")[0]

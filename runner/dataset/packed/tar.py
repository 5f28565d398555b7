"""Lists a tar as WebDataset packs data sets: audio members, and members with their labels.

Only headers are read, and the content of labels.
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

from runner.dataset.packed.address import TarMember, UnreadableClip, address_tail

_BLOCK = 512

_MAX_READ = 1 << 20
"""Bytes of one header or label at most; a larger size is damaged, or meant to exhaust memory."""


@dataclass
class Contents:
    """The clips of a container.

    Attributes:
        names: in the container; None for a clip that is named by the number of its row.
        tails: of their addresses.
        sizes: in bytes.
        labels: None for a clip without one.
        ignored: other members, by extension or reason.
        problem: reason and detail why clips may be missing; None if all were listed.
    """

    names: list[bytes | None] = field(default_factory=list)
    tails: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    problem: tuple[str, str] | None = None


class _Bounded:
    """Limits the reads of ``tarfile``, which trusts the sizes in headers."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def scan_tar(file: IO[bytes], container: bytes, extensions: frozenset[str], label_from: str) -> Contents:
    """List the audio members of a tar.

    Args:
        file: the tar, open; its reads are complete unless it ends.
        container: its path or URL, for addresses.
        extensions: of audio members, as ``.flac``.
        label_from: ``parent`` (folder), ``none``, or the extension of members with labels: ``cls``, ``json:KEY``.

    Raises:
        ClipError: raised by ``file`` where it can't be read.
    """
    scan = _Scan(file, container, extensions, label_from)
    try:
        scan.run()
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        scan.break_off(f"{type(error).__name__}: {error}")
    return scan.contents()


class _Scan:
    """Reads the headers of a tar, and the content of labels; see ``scan_tar``."""

    def __init__(self, file: IO[bytes], container: bytes, extensions: frozenset[str], label_from: str) -> None:
        self._file = file
        self._container = container
        self._extensions = extensions
        self._from_parent = label_from == "parent"
        extension, _, self._key = label_from.partition(":")
        self._label_suffix = None if label_from in ("parent", "none") else f".{extension.lower()}"
        self._members: dict[bytes, TarMember] = {}  # all regular ones, for links to them
        self._clips: dict[bytes, TarMember | UnreadableClip] = {}
        self._labels: dict[bytes, str | None] = {}
        self._contents = Contents()
        self._end = 0

    def run(self) -> None:
        archive = tarfile.open(fileobj=_Bounded(self._file), mode="r:", encoding="utf-8", errors="surrogateescape")  # type: ignore[call-overload]  # noqa: SIM115
        while member := archive.next():
            if archive.offset <= self._end:
                raise tarfile.ReadError("a member of negative size")
            self._end = archive.offset
            archive.members = []  # the module would keep them all
            self._add(member)
        self._file.seek(archive.offset)
        last = self._file.read(_BLOCK)
        if last.count(0) != len(last) or (not last and not self._end):
            raise tarfile.ReadError("not a tar" if not self._end else "a header is missing")

    def break_off(self, error: str) -> None:
        """Record that the tar can't be read further."""
        if not self._end:
            self._contents.problem = "unsupported_format", f"it can't be read as a tar ({error})"
        else:
            detail = f"the tar ends at byte {self._end:,} ({error}): members may be missing"
            self._contents.problem = "truncated", detail

    def contents(self) -> Contents:
        """Return all clips so far, with their labels."""
        contents = self._contents
        for name, location in self._clips.items():
            contents.names.append(name)
            contents.tails.append(address_tail(location))
            contents.sizes.append(location.size if isinstance(location, TarMember) else 0)
            contents.labels.append(self._labels.get(_sample(name)))
        return contents

    def _add(self, member: tarfile.TarInfo) -> None:
        if member.isdir():
            return
        name = _normalize(os.fsencode(member.name)).replace(b"\0", b"\\x00")
        suffix = os.path.splitext(os.fsdecode(name))[1].lower()
        location = self._locate(name, member, suffix)
        if isinstance(location, TarMember):
            self._members[name] = location
        if suffix in self._extensions:
            if name in self._clips:
                self._contents.ignored["(replaced by a later member)"] += 1
                del self._clips[name]  # as unpacking overwrites it
            self._clips[name] = location
            return
        self._contents.ignored[suffix or "(no extension)"] += 1
        is_label = self._label_suffix and os.fsdecode(name).lower().endswith(self._label_suffix)
        if is_label and isinstance(location, TarMember):
            self._labels[_sample(name)] = self._read_label(location)

    def _locate(self, name: bytes, member: tarfile.TarInfo, suffix: str) -> TarMember | UnreadableClip:
        if member.islnk() or member.issym():
            target = os.fsencode(member.linkname)
            if member.issym():
                target = posixpath.join(posixpath.dirname(name), target)
            if linked := self._members.get(_normalize(posixpath.normpath(target))):
                return linked._replace(suffix=suffix)
            detail = f"a link to {member.linkname}, which is not before it in the tar"
            return UnreadableClip(self._container, "missing", detail)
        if not member.isreg():
            return UnreadableClip(self._container, "not_a_file", "a pipe or device in a tar")
        if member.sparse is not None:
            return UnreadableClip(self._container, "unsupported_format", "a sparse member: pack it without --sparse")
        self._file.seek(member.offset_data - _BLOCK)
        return TarMember(self._container, member.offset_data, member.size, zlib.crc32(self._file.read(_BLOCK)), suffix)

    def _read_label(self, member: TarMember) -> str | None:
        if member.size > _MAX_READ:
            self._contents.ignored["(label that is too long)"] += 1
            return None
        self._file.seek(member.offset)
        try:
            text = self._file.read(member.size).decode("utf-8").replace("\0", "").strip()
            value = json.loads(text)[self._key] if self._key else text
        except (ValueError, KeyError, TypeError, RecursionError):
            self._contents.ignored["(label that can't be read)"] += 1
            return None
        return value if isinstance(value, str) else None if value is None else json.dumps(value)


def _normalize(name: bytes) -> bytes:
    """Return a member's name as the file system has it once unpacked."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


def _sample(name: bytes) -> bytes:
    """Return the key of a member's WebDataset sample: its path up to the first dot of the file name."""
    folder, slash, file = name.rpartition(b"/")
    return folder + slash + file.partition(b".")[0]

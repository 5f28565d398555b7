"""Messages between the driver and its actors, through Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.contract.result import Startup

if TYPE_CHECKING:
    from runner.contract.spec import RunSpec
    from runner.core.failures import Failure
    from runner.output.state.journal import ShardEntry


@dataclass(frozen=True)
class ActorInit:
    """An actor's order.

    ``weights`` are Ray's references to the weights' files by name, for machines that lack them; ``clips`` is about how
    many clips an actor gets.
    """

    spec: RunSpec
    weights: Mapping[str, Any]
    clips: int


@dataclass(frozen=True)
class ActorFailure:
    """The end of an actor's work, and the shards that it takes back."""

    failure: Failure
    undone: tuple[int, ...] = ()


@dataclass(frozen=True)
class ActorReport:
    """An actor that is ready, or has failed before it was: where it is, and what it embeds with.

    ``node`` is Ray's id of its machine; ``identity`` must be the same for all actors of a run; ``file_metadata`` is
    that of its files.
    """

    host: str
    node: str
    pid: int
    startup: Startup = field(default_factory=Startup)
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    file_metadata: Mapping[str, str] = field(default_factory=dict)
    failed: ActorFailure | None = None

    @property
    def decode_processes(self) -> int:
        """How many it has."""
        return int(self.startup.resolved.get("memory.decode_workers") or 1)


@dataclass(frozen=True)
class ShardReport:
    """A shard's line for the journal, or the failure that kept it from being made."""

    entry: ShardEntry | None = None
    failed: ActorFailure | None = None


@dataclass(frozen=True)
class ActorProgress:
    """How far an actor is.

    ``began`` and ``ended`` (the last result so far) are in seconds since the epoch; ``examples`` are embedded, of which
    ``under_way`` are of clips that are not finished.
    """

    began: float
    ended: float
    examples: int
    under_way: int


@dataclass(frozen=True)
class ActorEnd:
    """An actor's last report: seconds that its ``stages`` were busy and its replicas waited for input."""

    progress: ActorProgress | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    input_wait_s: float = 0.0
    canaries: int = 0
    warnings: tuple[str, ...] = ()
    failed: ActorFailure | None = None


Message = ActorReport | ShardReport | ActorProgress | ActorEnd | None
"""An actor's answer to a call; None from one that has not begun."""

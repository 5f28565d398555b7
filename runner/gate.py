"""The parity gate of many actors: each distinct device model is measured once, by whoever is there first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from runner.cold_start import take_through_gate
from runner.config import ParityConfig
from runner.hardware import versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.vggish.session import VGGishSession


class VerdictsLike(Protocol):
    """Where verdicts are kept."""

    def ask(self, key: str) -> dict[str, Any] | None:
        """The verdict on a device model, once there is one; None for who is to measure, and then tell."""
        ...

    def tell(self, key: str, verdict: dict[str, Any] | None) -> None:
        """Give a verdict; None for none."""
        ...


def once_a_model(verdicts: VerdictsLike, who: str) -> Callable[..., str | None]:
    """A gate in the place of ``take_through_gate`` that takes over what another has measured on the same device model.

    The same are: name and kind of device, precision, algorithm, compiler, weights, type of windows, rows at once and
    versions.  ``result["parity"]`` says in ``measured_by`` who did, and in ``taken_over`` whether that was another; a
    verdict against the device is taken over too.

    Args:
        verdicts: that all share.
        who: this process, for others to read.
    """

    def gate(
        sessions: Sequence[VGGishSession],
        expected: NDArray[np.float32],
        config: ParityConfig,
        *,
        cached: bool,
        result: dict[str, Any],
        dtype: str = "float32",
    ) -> str | None:
        key = json.dumps(_key(sessions[0], dtype), sort_keys=True)
        found = verdicts.ask(key)
        taken_over = found is not None
        if found is None:
            own: dict[str, Any] = {"metrics": {}}
            try:
                missed = take_through_gate(sessions, expected, config, cached=cached, result=own, dtype=dtype)
                found = {"by": who, "missed": missed, "parity": own["parity"], "metrics": own["metrics"]}
            finally:
                verdicts.tell(key, found)
        result["parity"] = {**found["parity"], "measured_by": found["by"], "taken_over": taken_over}
        result["metrics"] |= found["metrics"]
        verdict: str | None = found["missed"]
        return verdict

    return gate


def _key(session: VGGishSession, dtype: str) -> dict[str, Any]:
    metadata = session.metadata
    return {
        "device": [metadata.device["effective"], metadata.device["name"]],
        "precision": metadata.precision["effective"],
        "conv": metadata.model["conv"]["effective"],
        "compiler": session.compiler["effective"],
        "weights": metadata.weights["checksum"],
        "dtype": dtype,
        "rows": session.fewest,
        "versions": versions(),
    }

"""``precision=``: the number format of the network."""

from __future__ import annotations

from dataclasses import dataclass

from runner.config.checks import one_of

PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")


@dataclass
class PrecisionConfig:
    """The number format of the network's products; the log-mel stays float32."""

    name: str = "float32"
    """auto, float32, tf32, bfloat16 or float16; auto takes the fastest in which the device passes the parity gate."""

    def __post_init__(self) -> None:
        one_of("precision.name", self.name, PRECISIONS)

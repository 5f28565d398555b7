"""What the runner asks of an embedding model, and what it knows to do for those that do not override it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import WeightsError
from runner.devices.detection import DeviceType
from runner.devices.host import versions
from runner.models.answers import AnswerCache, Answers
from runner.models.signals import fixed_signals
from runner.weights.selection import resolve_weights

if TYPE_CHECKING:
    from runner.contract.result import Decision
    from runner.core.model_spec import ModelSpec
    from runner.models.program import Program
    from runner.vggish.postprocess import PcaParameters
    from runner.weights.download import ReleasedFile
    from runner.weights.selection import WeightsChoice, WeightsRequest

Array = NDArray[np.float32]

Weights = dict[str, Array]
"""Float32 arrays by the names that the model gives them."""


@dataclass(frozen=True)
class LoadedWeights:
    """Weights in memory.

    Attributes:
        choice: which weights they are.
        arrays: by name; a program takes them out.
        checksum: of their values.
        pca: AudioSet's PCA parameters; None where none are needed.
        smoke: statistics of the release's smoke test, which is run on the released weights only.
    """

    choice: WeightsChoice
    arrays: Weights
    checksum: str
    pca: PcaParameters | None = None
    smoke: Mapping[str, float] | None = None


@dataclass(frozen=True)
class RandomInit:
    """Random weights, and their checksum."""

    arrays: Weights
    checksum: str


@dataclass(frozen=True)
class Target:
    """Where a program is to run: a kind of device, which of them, and the number format in effect."""

    device: DeviceType
    precision: str = "float32"
    ordinal: int = 0

    @property
    def name(self) -> str:
        """TensorFlow's name of the device."""
        return "/CPU:0" if self.device is DeviceType.CPU else f"/GPU:{self.ordinal}"


class EmbeddingModel:
    """A model from waveform to embeddings, as the runner takes it: see docs/guides/models.md.

    A model of another package subclasses it, sets ``spec`` and writes ``build`` (or ``make_program``, for a program of
    its own), and ``random_weights`` or ``read_weights``.  Its module must not import TensorFlow when it is imported:
    commands read its ``spec`` alone.

    Attributes:
        spec: rate, windows and outputs.
        release: the files of the released weights, the weights last, for ``weights=audioset`` and ``auto``.
        notes: messages for the user about the loaded model.
        has_reference: whether ``reference`` is independent of ``build``; otherwise it is the same program in float32
            on the CPU.
    """

    spec: ModelSpec

    notes: Sequence[str] = ()

    release: ClassVar[Sequence[ReleasedFile]] = ()

    has_reference: ClassVar[bool] = False

    def build(self, weights: Weights, precision: str, device: DeviceType) -> Callable[[Any], Mapping[str, Any]]:
        """Return the function from windows to outputs, of TensorFlow's operations.

        It is called within the device's scope.  It takes a float32 tensor [n, ``spec.window_samples``] in -1..1, and
        returns a tensor [n, width] by output name; each row depends on its window alone.

        Args:
            weights: by name; take them out, so that they are not in memory twice.
            precision: number format for the network: one of ``spec.precisions``.
            device: the kind of device.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither build nor make_program")

    def random_weights(self, seed: int) -> Weights:
        """Draw weights, the same for a seed on every machine.

        Raises:
            WeightsError: the model has none.
        """
        raise WeightsError(f"model={self.spec.name} has no random weights: leave weights=random out")

    def read_weights(self, path: str) -> Weights:
        """Read weights from a file.

        Raises:
            WeightsError: the file has other weights, or the model reads none.
        """
        raise WeightsError(f"model={self.spec.name} reads no weights from files: leave weights=file out")

    def reference(self, weights: Weights, windows: Array, precision: str) -> Array:
        """Return the rows that the gate compares a device's with, float32 [n, width].

        Override it, and set ``has_reference``, with computations in float64 that share nothing with ``build``'s.

        Args:
            weights: by name, to be left as they are.
            windows: float32 [n, ``spec.window_samples``].
            precision: to which weights and activations are rounded, with ``has_reference``.
        """
        program = self.make_program(dict(weights), Target(DeviceType.CPU))
        return program.embed(windows)

    @property
    def reference_version(self) -> str:
        """Key of cached answers: another one where the reference's code gives other ones."""
        outputs = ",".join(output.name for output in self.spec.outputs)
        return f"{self.spec.name} {outputs} TensorFlow {versions()['tensorflow']}"

    def reference_log_mel(self, windows: Array) -> NDArray[np.float64] | None:
        """Return the log-mel [n, frames, bands] that a program's ``log_mel`` must have; None where it has no such."""
        return None

    def choose_weights(self, request: WeightsRequest) -> WeightsChoice:
        """Choose the weights, and download the released ones if necessary: see ``resolve_weights``."""
        if not self.release and request.weights.name in ("auto", "audioset"):
            raise WeightsError(
                f"model={self.spec.name} has no released weights: use weights=file weights.path=... or, to test the "
                "speed, weights=random"
            )
        return resolve_weights(request, request.models / self.spec.name, self.release)

    def draw(self, choice: WeightsChoice) -> RandomInit | None:
        """Draw random weights, while TensorFlow is imported; return None where they are in a file."""
        if choice.source != "random":
            return None
        arrays = self.random_weights(choice.seed or 0)
        return RandomInit(arrays, self.checksum(arrays))

    def load(self, choice: WeightsChoice, drawn: RandomInit | None = None, cache: Path | None = None) -> LoadedWeights:
        """Load the chosen weights.

        Args:
            choice: which weights.
            drawn: the result of ``draw``, if it was called already.
            cache: folder of the reference's answers.

        Raises:
            WeightsError: a file has other weights.
        """
        if choice.source == "random":
            drawn = drawn or self.draw(choice)
            assert drawn is not None
            return LoadedWeights(choice, drawn.arrays, drawn.checksum)
        arrays = self.read_weights(str(choice.path))
        return LoadedWeights(choice, arrays, self.checksum(arrays))

    def checksum(self, arrays: Weights) -> str:
        """Return the SHA-256 of weights: of names, shapes and values, in the order of the names."""
        digest = hashlib.sha256()
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def choose_algorithm(self, target: Target, cache: Path | None) -> Decision | None:
        """Choose between ways to compute the same, by measuring if need be; None where there is one way only."""
        return None

    def make_program(self, weights: Weights, target: Target, algorithm: Decision | None = None) -> Program:
        """Make the program for a device; ``weights`` are taken out."""
        from runner.models.program import FunctionProgram

        return FunctionProgram(self.spec, target, lambda: self.build(weights, target.precision, target.device))

    def answers(self, loaded: LoadedWeights, cache: Path | None, precision: str) -> Answers:
        """Return the reference's answers to the fixed signals.

        Args:
            loaded: with its arrays.
            cache: folder of cached answers.
            precision: in effect.

        Raises:
            WeightsError: the weights give NaN or infinity.
        """
        signals = fixed_signals(self.spec.sample_rate, self.spec.window_samples)
        exact, is_cached = self.remembered_rows(loaded, signals, cache)
        if not np.isfinite(exact).all():
            raise WeightsError(f"{loaded.choice.path} gives NaN or infinity on ordinary sound: get another checkpoint")
        about = (self.reference_log_mel(signals), self.spec.outputs)
        if not self.has_reference:
            return Answers(exact, None, is_cached, *about, "the same model in float32 on the CPU")
        if precision == "float32":
            return Answers(exact, exact, is_cached, *about)
        rounded, is_rounded_cached = self.remembered_rows(loaded, signals, cache, precision)
        return Answers(exact, rounded, is_cached and is_rounded_cached, *about)

    def remembered_rows(
        self, loaded: LoadedWeights, windows: Array, cache: Path | None, precision: str = "float32"
    ) -> tuple[Array, bool]:
        """Return the reference's rows for windows, float32 [n, width], and whether they came from the cache."""
        key = f"{self.reference_version} {loaded.checksum} {precision}"
        return AnswerCache(cache).get(key, windows, lambda rows: self.reference(loaded.arrays, rows, precision))

"""Faults, put one at a time into what embeds and into what judges it: each must be caught, or is listed.

``python -m tests.stress.mutations [--device gpu] [--only WORD]`` prints a table; the exit status is 1 where a fault
passes that ``PASSES`` does not name.  It needs no pytest.  ``tests/stress/test_mutations.py`` runs the same on the CPU.

A fault is an edit of a module's source (compiled in the module's place for as long as it is looked at), a lie told by
the session's ``embed_windows``, or a change of the session's weights.  It counts as caught by

- ``gate``: ``measure_session`` in int16 or float32 is out of tolerance;
- ``canary``: it passed, and data embedded after it, with canaries, fails;
- ``golden``: it passed these, but golden values (``tests/golden.py``) show it, which are checked in ``make test``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import inspect
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner.config.composition import compose_config
from runner.core.errors import ParityError
from runner.devices.selection import DeviceChoice, choose_device
from runner.inference import session
from runner.inference.canary import Canary
from runner.inference.gate import measure_session
from runner.models import base, signals
from runner.models.answers import AnswerCache, Answers
from runner.models.signals import as_int16, fixed_signals
from runner.models.vggish import program
from runner.vggish import arrays, reference
from runner.vggish.arrays import random_weights, weights_checksum
from runner.vggish.spec import VGGISH
from tests import golden
from tests.reference import CPU
from tests.stress.mutation_list import FAULTS, PASSES, Edit, Fault, Lie, Weights

BATCH = 96
"""A full batch: more than 64, and three of a CPU's chunks."""
LOG_MEL_TOLERANCE, EMBEDDINGS_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3, "float16": 1e-3, "tf32": 1e-5}, 1e-5


@dataclass(frozen=True)
class Finding:
    """What became of a fault: caught by what ("" for nothing), in which words, and its effect on ordinary sound.

    ``effect``, of one that nothing caught, is the root mean square of the change of a batch's embeddings over that of
    the embeddings.
    """

    fault: Fault
    caught_by: str
    words: str
    effect: float
    seconds: float


@contextlib.contextmanager
def edited(*edits: Edit) -> Iterator[None]:
    """Have modules, and those that import from them, as if their source were other; afterwards they are as before."""
    before: list[tuple[Any, dict[str, Any]]] = []
    try:
        for edit in edits:
            module = importlib.import_module(edit.module)
            source = inspect.getsource(module)
            if edit.old not in source:
                raise LookupError(f"{edit.module} has no {edit.old!r} any more: mend tests/stress/mutation_list.py")
            own = dict(vars(module))
            before.append((module, own))
            exec(compile(source.replace(edit.old, edit.new), str(module.__file__), "exec"), vars(module))
            for importer in [each for name, each in sys.modules.items() if name.startswith("runner.")]:
                imported = [name for name, what in vars(importer).items() if _is_from(edit.module, what, own.get(name))]
                if imported:
                    before.append((importer, dict(vars(importer))))
                    vars(importer).update({name: vars(module)[name] for name in imported})
        yield
    finally:
        for module, names in reversed(before):
            vars(module).clear()
            vars(module).update(names)


def _is_from(module: str, what: Any, original: Any) -> bool:
    """Whether a name's value is the function or class that the module had under this name."""
    return what is original and getattr(what, "__module__", None) == module


@contextlib.contextmanager
def lying(lie: Callable[..., Any], kind: Any = session.EmbeddingSession) -> Iterator[None]:
    """Have ``embed_windows`` of every session of that kind go through ``lie(session, windows, embed, state)``."""
    state: dict[str, Any] = {}
    plain = kind.embed_windows

    def embed_windows(self: Any, windows: Any, copied: Any = None) -> Any:
        return lie(self, windows, lambda given: plain(self, given, copied), state)

    kind.embed_windows = embed_windows  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.embed_windows = plain  # type: ignore[method-assign]


def install(name: str, kind: Any) -> None:
    """Have this process's sessions of a kind lie as the fault of that name does, to its end."""
    (what,) = (fault.what for fault in FAULTS if fault.name == name)
    assert isinstance(what, Lie)
    _held.enter_context(lying(what.lie, kind))


_held = contextlib.ExitStack()


def _device(name: str, memory: Any) -> DeviceChoice:
    """The device; a CPU needs no settings of TensorFlow, which other tests of the process may have started."""
    if name == "cpu":
        return choose_device("cpu", [CPU])
    from runner.inference.builder import DeviceRequest, place_on_device
    from runner.vggish.spec import VGGISH

    return place_on_device(DeviceRequest(name, strict=True), memory, VGGISH).device


class Bench:
    """Sessions with seeded weights on one device, and what they are held to.

    Args:
        device: cpu or gpu.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.config = compose_config(["weights=random", "memory=conservative", "dataset=demo"])
        self._device = _device(device, self.config.memory)
        self.weights = random_weights(golden.SEED)
        self._checksum = weights_checksum(self.weights)
        self._cache = AnswerCache(Path(tempfile.gettempdir()) / "vggish-mutations")
        self._cache.get(self._key("float32"), fixed_signals(), lambda windows: golden.load()["embeddings"])
        self._shared: dict[tuple[str, str], Any] = {}
        rng = np.random.default_rng(0)
        t = np.arange(15_600) / 16_000
        pitch, wobble = rng.uniform(80, 7000, (BATCH, 1)), rng.uniform(1, 9, (BATCH, 1))
        tones = np.sin(2 * np.pi * pitch * t) * np.sin(2 * np.pi * wobble * t)
        sound = np.logspace(-3, -0.3, BATCH)[:, None] * (tones + 0.3 * rng.standard_normal((BATCH, 15_600)))
        self.data = as_int16(np.clip(sound, -0.999, 0.999).astype(np.float32))
        self._plain: dict[tuple[str, str], np.ndarray] = {}

    def build(self, precision: str, conv: str) -> Any:
        """A session by the code as it is now."""
        from runner.inference.precision import choose_precision
        from tests.reference import algorithm, metadata_of

        gc.collect()
        chosen = choose_precision(precision, self._device.device)
        metadata = metadata_of(self._device, chosen)
        target = base.Target(self._device.effective, chosen.effective)
        built = program.VGGishProgram(VGGISH, dict(self.weights), target, algorithm(conv))
        return session.EmbeddingSession(built, BATCH, metadata)

    def shared(self, precision: str, conv: str) -> Any:
        """A session that nothing was done to."""
        if (precision, conv) not in self._shared:
            self._shared[precision, conv] = self.build(precision, conv)
        return self._shared[precision, conv]

    def answers(self, fault: Fault) -> Answers:
        """The reference's, computed anew where that is at fault: it is known by its file, which is as before."""
        windows = fixed_signals()

        def compute(precision: str) -> np.ndarray:
            def of(windows: np.ndarray) -> np.ndarray:
                return reference.reference_embeddings(self.weights, windows, precision)

            return of(windows) if fault.shared else self._cache.get(self._key(precision), windows, of)[0]

        exact, log_mel = compute("float32"), reference.reference_log_mel(windows)
        return Answers(exact, exact if fault.precision == "float32" else compute(fault.precision), log_mel=log_mel)

    def _key(self, precision: str) -> str:
        return f"{reference.version()} {self._checksum} {precision}"

    def effect(self, made: Any, fault: Fault) -> float:
        """See ``Finding``."""
        found = made.embed_windows(self.data)
        plain = self._plain[fault.precision, fault.conv].astype(np.float64)
        return float(np.sqrt(np.square(found - plain).mean() / np.square(plain).mean()))

    def look(self, made: Any, fault: Fault, answers: Answers) -> tuple[str, str]:
        """What catches what is wrong with a session, and its words."""
        tolerance = self.config.parity.tolerances[fault.precision]
        for dtype in ("int16", "float32"):
            if misses := measure_session(made, answers, dtype).misses(tolerance):
                return "gate", f"{dtype}: {misses[0]}"
        try:
            canary = Canary(made, answers, self.config.parity, ("int16", "float32"))
            floats = self.data.astype(np.float32) / np.float32(32768)
            for batch in (self.data, floats, floats[::-1].copy(), self.data[:50]):
                canary.embed(batch)
            canary.finish()
        except ParityError as error:
            return "canary", str(error)
        if (error := golden.log_mel_error(made.log_mel(fixed_signals()))) > LOG_MEL_TOLERANCE[fault.precision]:
            return "golden", f"log-mel is {error:.1e} away"
        if (error := golden.embeddings_error(answers.exact)) > EMBEDDINGS_TOLERANCE:
            return "golden", f"the reference is {error:.1e} away"
        return "", ""

    def unlike_golden(self, made: Any, fault: Fault) -> str:
        """What a few golden values say of a session and of the reference, where both may have the same fault."""
        if (error := golden.log_mel_error(made.log_mel(fixed_signals()))) > LOG_MEL_TOLERANCE[fault.precision]:
            return f"log-mel is {error:.1e} away"
        rows = slice(0, 4)
        few = reference.reference_embeddings(self.weights, fixed_signals()[rows])
        error = golden.embeddings_error(few, rows)
        return f"the reference is {error:.1e} away" if error > EMBEDDINGS_TOLERANCE else ""

    def examine(self, fault: Fault) -> Finding:
        """Put a fault in, look, and take it out."""
        start, key = time.perf_counter(), (fault.precision, fault.conv)
        if key not in self._plain:
            self._plain[key] = self.shared(*key).embed_windows(self.data)
        with contextlib.ExitStack() as stack:
            stack.enter_context(edited(*fault.edits))
            stack.callback(signals.fixed_signals.cache_clear)
            signals.fixed_signals.cache_clear()
            if fault.inputs:
                moved = golden.moved(signals.fixed_signals(), arrays.random_weights(golden.SEED))
                return Finding(fault, "golden" if moved else "", moved, 0.0, time.perf_counter() - start)
            made = (self.build if fault.edits else self.shared)(fault.precision, fault.conv)
            if fault.shared and (words := self.unlike_golden(made, fault)):
                return Finding(fault, "golden", words, float("nan"), time.perf_counter() - start)
            if isinstance(fault.what, Lie):
                stack.enter_context(lying(fault.what.lie))
            if isinstance(fault.what, Weights):
                stack.enter_context(_changed(made.weights, fault.what))
            caught_by, words = self.look(made, fault, self.answers(fault))
            effect = float("nan") if caught_by else self.effect(made, fault)
        return Finding(fault, caught_by, words, effect, time.perf_counter() - start)


@contextlib.contextmanager
def _changed(variables: Any, what: Weights) -> Iterator[None]:
    before = variables[what.name].numpy()
    changed = before.copy()
    what.change(changed)
    variables[what.name].assign(changed)
    try:
        yield
    finally:
        variables[what.name].assign(before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine the faults, print the table, and say whether any passed that should not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", default="", help="faults whose name has this word")
    options = parser.parse_args(arguments)
    bench = Bench(options.device)
    passed = []
    print("| fault | precision | caught by | effect | s |\n| --- | --- | --- | ---: | ---: |")
    for fault in FAULTS:
        if options.device not in fault.devices or options.only not in fault.name:
            continue
        found = bench.examine(fault)
        by = found.caught_by or "**nothing**"
        what = f"| {fault.name} | {fault.precision} | {by} {found.words[:90]} "
        print(f"{what}| {found.effect:.1e} | {found.seconds:.1f} |", flush=True)
        if not found.caught_by and fault.name not in PASSES:
            passed.append(fault.name)
    print(f"passed: {', '.join(passed) or 'none'}")
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())

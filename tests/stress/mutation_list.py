"""The faults of ``tests/stress/mutations.py``, and those of them that nothing sees, with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.vggish.arrays import random_weights


@dataclass(frozen=True)
class Edit:
    """In a module's source ``old`` becomes ``new``, wherever it is."""

    module: str
    old: str
    new: str


@dataclass(frozen=True)
class Lie:
    """``lie(session, windows, embed, state)`` in the place of ``embed(windows)``; ``state`` is a dict to keep."""

    lie: Callable[[Any, np.ndarray, Callable[[np.ndarray], np.ndarray], dict[str, Any]], np.ndarray]


@dataclass(frozen=True)
class Weights:
    """A variable of the session, changed in place."""

    name: str
    change: Callable[[np.ndarray], None]


@dataclass(frozen=True)
class Fault:
    """What is wrong, in which precision and algorithm it is looked at, and on which devices.

    ``shared`` says that the fault is in what device and reference have in common, ``inputs`` that it is in the signals
    or the seeded weights.
    """

    name: str
    what: Lie | Weights | None = None
    edits: tuple[Edit, ...] = ()
    precision: str = "float32"
    conv: str = "direct"
    devices: tuple[str, ...] = ("cpu",)
    shared: bool = False
    inputs: bool = False


BOTH = ("cpu", "gpu")
FIVE_PER_CENT = np.float32(1.05)


def _spoilt(found: np.ndarray, rows: Any) -> np.ndarray:
    found = found.copy()
    found[rows] *= FIVE_PER_CENT
    return found


def _level(windows: np.ndarray) -> np.ndarray:
    full_scale = 32768 if windows.dtype == np.int16 else 1
    level: np.ndarray = np.sqrt(np.square(windows.astype(np.float64) / full_scale).mean(axis=1))
    return level


def _counted(session, windows, embed, state):  # type: ignore[no-untyped-def]
    found = embed(windows)
    count = state.get("rows", 0)
    state["rows"] = count + len(found)
    return _spoilt(found, (count + np.arange(len(found))) % 230 == 77)


def _stale(session, windows, embed, state):  # type: ignore[no-untyped-def]
    found = embed(windows)
    before = state.get(found.shape, found)
    state[found.shape] = found
    return before


def _after(calls: int) -> Callable[..., np.ndarray]:
    def lie(session, windows, embed, state):  # type: ignore[no-untyped-def]
        state["calls"] = state.get("calls", 0) + 1
        return embed(windows) * (FIVE_PER_CENT if state["calls"] > calls else np.float32(1))

    return lie


def _by_content(session, windows, embed, state):  # type: ignore[no-untyped-def]
    digests = [hashlib.sha256(row.tobytes()).digest() for row in windows]
    return _spoilt(embed(windows), np.array([int.from_bytes(digest[:4], "big") % 230 == 77 for digest in digests]))


def _if_full(change: Callable[[np.ndarray], np.ndarray]) -> Lie:
    return Lie(lambda session, x, embed, _: change(embed(x)) if len(x) >= session.effective_batch_size else embed(x))


def _last_garbage(found: np.ndarray) -> np.ndarray:
    return np.concatenate([found[:-1], found[:1] * 0 + 7])


def _pairs_swapped(found: np.ndarray) -> np.ndarray:
    order = np.arange(len(found))
    order[: len(order) // 2 * 2] ^= 1
    return found[order]


def _set(found: np.ndarray, where: Any, value: float) -> np.ndarray:
    found = found.copy()
    found[where] = value
    return found


_LIES: dict[str, Lie] = {
    "wrong above 64 rows": Lie(lambda s, x, embed, _: _spoilt(embed(x), slice(64, None))),
    "rows shifted by one when the batch is full": _if_full(lambda found: np.roll(found, 1, axis=0)),
    "last row garbage when the batch is full": _if_full(_last_garbage),
    "batch not a multiple of 8": Lie(
        lambda s, x, embed, _: embed(x) * (FIVE_PER_CENT if len(x) % 8 else np.float32(1))
    ),
    "batch a multiple of 8": Lie(lambda s, x, embed, _: embed(x) * (np.float32(1) if len(x) % 8 else FIVE_PER_CENT)),
    "a single row wrong": Lie(lambda s, x, embed, _: embed(x) * (FIVE_PER_CENT if len(x) == 1 else np.float32(1))),
    "float32 wrong, int16 right": Lie(
        lambda s, x, embed, _: embed(x) * (FIVE_PER_CENT if x.dtype == np.float32 else np.float32(1))
    ),
    "int16 wrong, float32 right": Lie(
        lambda s, x, embed, _: embed(x) * (FIVE_PER_CENT if x.dtype == np.int16 else np.float32(1))
    ),
    "full int16 batches wrong": Lie(
        lambda s, x, embed, _: (
            embed(x) * (FIVE_PER_CENT if x.dtype == np.int16 and len(x) >= s.effective_batch_size else np.float32(1))
        )
    ),
    "wrong above 0.75 RMS": Lie(lambda s, x, embed, _: _spoilt(embed(x), _level(x) > 0.75)),
    "wrong below 1e-3 RMS": Lie(lambda s, x, embed, _: _spoilt(embed(x), _level(x) < 1e-3)),
    "samples above 1 clipped": Lie(
        lambda s, x, embed, _: embed(x if x.dtype == np.int16 else np.clip(x, -1, 1).astype(np.float32))
    ),
    "2 rows of 461 wrong, by number": Lie(_counted),
    "results of the batch before": Lie(_stale),
    "wrong after ten calls": Lie(_after(10)),
    "neighbours swapped above 16 rows": Lie(
        lambda s, x, embed, _: _pairs_swapped(embed(x)) if len(x) > 16 else embed(x)
    ),
    "second row zero": Lie(lambda s, x, embed, _: _set(embed(x), slice(1, 2), 0)),
    "NaN in a row": Lie(lambda s, x, embed, _: _set(embed(x), (len(x) // 2, 5), np.nan)),
    "a component zero": Lie(lambda s, x, embed, _: _set(embed(x), (slice(None), 127), 0)),
    "ReLU on the embeddings": Lie(lambda s, x, embed, _: np.maximum(embed(x), 0)),
    "embeddings rounded to float16": Lie(lambda s, x, embed, _: embed(x).astype(np.float16).astype(np.float32)),
    "low byte of the samples lost": Lie(
        lambda s, x, embed, _: embed((x & ~255) if x.dtype == np.int16 else np.trunc(x * 128).astype(np.float32) / 128)
    ),
    "bytes of int16 swapped": Lie(lambda s, x, embed, _: embed(x.byteswap() if x.dtype == np.int16 else x)),
    "constant taken out": Lie(lambda s, x, embed, _: embed((x - x.mean(axis=1, keepdims=True)).astype(x.dtype))),
    "scaled by the batch's peak": Lie(
        lambda s, x, embed, _: embed((x / max(np.abs(x.astype(float)).max(), 1e-9)).astype(np.float32))
    ),
    "neighbours leak into a row": Lie(
        lambda s, x, embed, _: (lambda y: y + np.float32(1e-3) * np.roll(y, 1, 0))(embed(x))
    ),
    "2 rows of 461 wrong, by content": Lie(_by_content),
}

FRONTEND, MEL, NETWORK, WINOGRAD, REFERENCE, ARRAYS = (
    f"runner.vggish.{name}" for name in ("frontend", "mel", "network", "winograd", "reference", "arrays")
)
SESSION = "runner.inference.session"
PROGRAM, SIGNALS = "runner.models.vggish.program", "runner.models.signals"

_EDGE = ("np.array([MEL_MIN_HZ, MEL_MAX_HZ])", "np.array([{}])")
_HANN = ("np.arange(STFT_WINDOW) / STFT_WINDOW)", "np.arange(STFT_WINDOW) / (STFT_WINDOW - 1))")
_SHIFT = ("pieces = tf.reshape(windows, ", "pieces = tf.reshape(tf.roll(windows, 1, 1), ")
_POOL = (
    'return tf.nn.max_pool2d(x, ksize=2, strides=2, padding="SAME") if',
    'return tf.nn.avg_pool2d(x, ksize=2, strides=2, padding="SAME") if',
)
_RELU = 'x = tf.nn.relu(tf.nn.bias_add(x, weights[f"vggish/{layer}/biases"]))\n    if last'
_FC2 = ('return tf.nn.bias_add(x, weights["vggish/fc2/biases"])', "return {}")

_EDITS: dict[str, tuple[str, str, str]] = {
    "mel edge 7600 Hz": (MEL, _EDGE[0], _EDGE[1].format("MEL_MIN_HZ, 7600.0")),
    "mel edge 7501 Hz": (MEL, _EDGE[0], _EDGE[1].format("MEL_MIN_HZ, 7501.0")),
    "mel edge 126 Hz": (MEL, _EDGE[0], _EDGE[1].format("126.0, MEL_MAX_HZ")),
    "symmetric Hann": (MEL, *_HANN),
    "first bin kept": (MEL, "matrix[0] = 0.0", "matrix[0] = 1.0"),
    "a mel filter lost": (MEL, "matrix[0] = 0.0", "matrix[0] = 0.0\n    matrix[:, 40] = 0.0"),
    "log offset doubled": (FRONTEND, "tf.math.log(mel + offset)", "tf.math.log(mel + 2 * offset)"),
    "power in magnitude's place": (
        FRONTEND,
        "magnitude = tf.sqrt(tf.cast(power, mel_dtype))",
        "magnitude = tf.cast(power, mel_dtype)",
    ),
    "windows shifted by a sample": (FRONTEND, *_SHIFT),
    "last frame is the one before": (
        FRONTEND,
        "frames = tf.gather(pieces",
        "places[-1] = places[-2]\n    frames = tf.gather(pieces",
    ),
    "frames' edges 2 samples off": (
        FRONTEND,
        "[-1, EXAMPLE_FRAMES, STFT_WINDOW]), fft_dtype)",
        "[-1, EXAMPLE_FRAMES, STFT_WINDOW]), fft_dtype)\n    frames = tf.roll(frames, 2, 2)",
    ),
    "natural frequency in mel's place": (MEL, "return 1127.0 * np.log1p(hertz / 700.0)", "return hertz"),
    "average in max-pool's place": (NETWORK, *_POOL),
    "ReLU lost in convolutions": (
        NETWORK,
        'x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, strides=1, padding="SAME"), biases))',
        'x = tf.nn.bias_add(tf.nn.conv2d(x, kernel, strides=1, padding="SAME"), biases)',
    ),
    "kernels upside down": (
        NETWORK,
        "tf.nn.conv2d(x, kernel, strides",
        "tf.nn.conv2d(x, tf.reverse(kernel, [0]), strides",
    ),
    "kernels transposed": (
        NETWORK,
        "tf.nn.conv2d(x, kernel, strides",
        "tf.nn.conv2d(x, tf.transpose(kernel, [1, 0, 2, 3]), strides",
    ),
    "features flattened by columns": (
        NETWORK,
        "x = _convolutions(weights, pooled, _DEEP)",
        "x = tf.transpose(_convolutions(weights, pooled, _DEEP), [0, 2, 1, 3])",
    ),
    "ReLU lost in the dense layers": (NETWORK, _RELU, _RELU.replace("tf.nn.relu(", "(")),
    "ReLU after fc2": (NETWORK, _FC2[0], _FC2[1].format('tf.nn.relu(tf.nn.bias_add(x, weights["vggish/fc2/biases"]))')),
    "fc2's bias lost": (NETWORK, _FC2[0], _FC2[1].format("x")),
    "time backwards": (
        NETWORK,
        "tf.reshape(examples, [-1, EXAMPLE_FRAMES, MEL_BANDS, 1])",
        "tf.reverse(tf.reshape(examples, [-1, EXAMPLE_FRAMES, MEL_BANDS, 1]), [1])",
    ),
    "last row of each chunk is its first": (
        NETWORK,
        "function(rows[start:end])",
        "function(tf.concat([rows[start : end - 1], rows[start : start + 1]], 0))",
    ),
    "dense layers 0.01 % too large": (
        NETWORK,
        "x = tf.matmul(tf.cast(x, tf.float32)",
        "x = tf.matmul(1.0001 * tf.cast(x, tf.float32)",
    ),
    "weights rounded to bfloat16": (
        NETWORK,
        "tensor = tf.cast(tensor, tf.float32 if exact else dtype)",
        "tensor = tf.cast(tf.cast(tensor, tf.bfloat16), tf.float32 if exact else dtype)",
    ),
    "int16 over 32767": (PROGRAM, "* INT16_SCALE if", "* (1 / 32767) if"),
    "the coarse front end": (PROGRAM, 'frontend.log_mel(windows, "float32")', "frontend.folded_log_mel(windows)"),
    "filling rows come first": (
        SESSION,
        "np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])",
        "np.concatenate([np.zeros((missing, *rows.shape[1:]), rows.dtype), rows])",
    ),
    "dense layers see filling rows": (
        PROGRAM,
        "[[0, tf.maximum(MIN_DENSE_ROWS_CPU - count, 0)], [0, 0]]",
        "[[tf.maximum(MIN_DENSE_ROWS_CPU - count, 0), 0], [0, 0]]",
    ),
}
_WINOGRAD_EDITS: dict[str, tuple[str, str, str]] = {
    "winograd: output matrix": (WINOGRAD, "[0, 1, -1, 8, -8, 1]]", "[0, 1, -1, 8, -7, 1]]"),
    "winograd: input matrix": (WINOGRAD, "[0, 4, 0, -5, 0, 1]", "[0, 4, 0, -5.001, 0, 1]"),
    "winograd: filter matrix": (WINOGRAD, "[1 / 24, 1 / 12, 1 / 6]", "[1 / 24, 1 / 12, 1 / 7]"),
    "winograd: edge pixels": (WINOGRAD, "inside = (y >= 0)", "inside = (y >= 1)"),
    "winograd: bias lost": (
        WINOGRAD,
        "tf.nn.relu(tf.nn.bias_add(tf.reshape(out, [-1, outputs]), biases))",
        "tf.nn.relu(tf.reshape(out, [-1, outputs]))",
    ),
    "winograd: ReLU lost": (
        WINOGRAD,
        "tf.nn.relu(tf.nn.bias_add(tf.reshape(out, [-1, outputs]), biases))",
        "tf.nn.bias_add(tf.reshape(out, [-1, outputs]), biases)",
    ),
}
_FUSED_EDITS: dict[str, tuple[str, str, str]] = {
    "fused: average in max-pool's place": (
        NETWORK,
        "return tf.maximum(tf.maximum(first, second), tf.maximum(third, fourth))",
        "return (first + second + third + fourth) / 4",
    ),
    "fused: conv1's bias lost": (NETWORK, "tf.nn.relu(largest(*sums) + biases)", "tf.nn.relu(largest(*sums))"),
    "fused: conv1's ReLU lost": (NETWORK, "tf.nn.relu(largest(*sums) + biases)", "largest(*sums) + biases"),
    "fused: conv1 a pixel off": (NETWORK, "kernel[i, j, 0]", "kernel[j, i, 0]"),
}
_COARSE_EDITS: dict[str, tuple[str, str, str]] = {
    "mel edge 7501 Hz": _EDITS["mel edge 7501 Hz"],
    "mel edge 126 Hz": _EDITS["mel edge 126 Hz"],
    "symmetric Hann": (MEL, *_HANN),
    "windows shifted by a sample": (
        FRONTEND,
        "after = halves(windows, forwards)",
        "windows = tf.roll(windows, 1, 1)\n    after = halves(windows, forwards)",
    ),
    "the middle sample counted twice": (FRONTEND, "cosines[0] /= 2", "cosines[0] /= 1"),
    "fc2's bias lost": _EDITS["fc2's bias lost"],
}
_LAYERS = (
    "conv1",
    "conv2",
    "conv3/conv3_1",
    "conv3/conv3_2",
    "conv4/conv4_1",
    "conv4/conv4_2",
    "fc1/fc1_1",
    "fc1/fc1_2",
    "fc2",
)


def _zero(where: Any) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[where] = 0

    return change


def _of_another_seed(array: np.ndarray) -> None:
    array[...] = random_weights(8)["vggish/conv3/conv3_1/weights"]


_WEIGHTS: dict[str, Weights] = {
    **{f"bias of {layer} lost": Weights(f"vggish/{layer}/biases", _zero(...)) for layer in _LAYERS},
    "a row of fc1_1 zero": Weights(
        "vggish/fc1/fc1_1/weights", _zero(1297)
    ),  # 1.6 % of what comes in: one in ten has more
    "a weak row of fc1_1 zero": Weights("vggish/fc1/fc1_1/weights", _zero(9045)),  # 0.4 %: half of them have more
    "a column of fc1_2 zero": Weights("vggish/fc1/fc1_2/weights", _zero((slice(None), 100))),
    "a channel of conv2 zero": Weights("vggish/conv2/weights", _zero((..., 5))),
    "kernel of another seed": Weights("vggish/conv3/conv3_1/weights", _of_another_seed),
}

_SHARED: dict[str, tuple[Edit, ...]] = {
    "mel edge 7600 Hz": (Edit(*_EDITS["mel edge 7600 Hz"]), Edit(REFERENCE, "mel(7500.0)", "mel(7600.0)")),
    "mel edge 7501 Hz": (Edit(*_EDITS["mel edge 7501 Hz"]), Edit(REFERENCE, "mel(7500.0)", "mel(7501.0)")),
    "average in max-pool's place": (
        Edit(NETWORK, *_POOL),
        Edit(
            REFERENCE,
            "return np.maximum(rows[:, ::2], rows[:, 1::2])",
            "return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4",
        ),
    ),
    "symmetric Hann": (Edit(MEL, *_HANN), Edit(REFERENCE, "position / 400.0", "position / 399.0")),
    "log offset doubled": (
        Edit(*_EDITS["log offset doubled"]),
        Edit(REFERENCE, "@ filters + offset", "@ filters + 2 * offset"),
    ),
    "windows shifted by a sample": (
        Edit(FRONTEND, *_SHIFT),
        Edit(REFERENCE, "windows.astype(np.float64), strict", "np.roll(windows, 1, 1).astype(np.float64), strict"),
    ),
    "ReLU after fc2": (
        Edit(*_EDITS["ReLU after fc2"]),
        Edit(
            REFERENCE,
            'return _dense(rounded(x), arrays, "fc2", ROUNDING["float32"]).astype',
            'return np.maximum(_dense(rounded(x), arrays, "fc2", ROUNDING["float32"]), 0).astype',
        ),
    ),
    "fc2's bias lost": (
        Edit(*_EDITS["fc2's bias lost"]),
        Edit(
            REFERENCE,
            "astype(np.float64)) + biases[columns]",
            'astype(np.float64)) + biases[columns] * (layer != "fc2")',
        ),
    ),
    "time backwards": (
        Edit(*_EDITS["time backwards"]),
        Edit(REFERENCE, "reference_log_mel(windows)[..., None]", "reference_log_mel(windows)[:, ::-1, :, None]"),
    ),
    "power in magnitude's place": (
        Edit(*_EDITS["power in magnitude's place"]),
        Edit(
            REFERENCE,
            "np.hypot(frames @ cosines, frames @ sines) @",
            "np.hypot(frames @ cosines, frames @ sines) ** 2 @",
        ),
    ),
}
_INPUTS: dict[str, tuple[Edit, ...]] = {
    "the signals are silent": (Edit(SIGNALS, "finer = [", "exact *= 0\n    finer = ["),),
    "random biases are zero": (Edit(ARRAYS, "_BIAS = 0.1", "_BIAS = 0.0"),),
    "random weights of another law": (Edit(ARRAYS, "np.sqrt(2.0 /", "np.sqrt(1.0 /"),),
}

FAULTS: tuple[Fault, ...] = (
    *(Fault(name, lie, devices=BOTH) for name, lie in _LIES.items()),
    *(Fault(f"{name} (float32)", what, devices=BOTH) for name, what in _WEIGHTS.items()),
    *(Fault(f"{name} (bfloat16)", what, precision="bfloat16", devices=BOTH) for name, what in _WEIGHTS.items()),
    *(Fault(name, edits=(Edit(*edit),)) for name, edit in _EDITS.items()),
    *(Fault(name, edits=(Edit(*edit),), conv="winograd") for name, edit in _WINOGRAD_EDITS.items()),
    *(Fault(f"{name} (bfloat16)", edits=(Edit(*edit),), precision="bfloat16") for name, edit in _COARSE_EDITS.items()),
    *(Fault(name, edits=(Edit(*edit),), devices=("gpu",)) for name, edit in _FUSED_EDITS.items()),
    *(
        Fault(f"{name} (on the GPU, {precision})", edits=(Edit(*_EDITS[name]),), devices=("gpu",), precision=precision)
        for name, precision in (
            ("mel edge 7501 Hz", "float16"),
            ("symmetric Hann", "float16"),
            ("windows shifted by a sample", "float16"),
            ("ReLU lost in the dense layers", "float16"),
            ("mel edge 7501 Hz", "float32"),
        )
    ),
    *(Fault(f"shared: {name}", edits=edits, shared=True) for name, edits in _SHARED.items()),
    *(Fault(f"inputs: {name}", edits=edits, inputs=True) for name, edits in _INPUTS.items()),
)

PASSES: dict[str, str] = {
    "a weak row of fc1_1 zero (bfloat16)": "it changes embeddings by 0.7 %, as bfloat16's own rounding does",
    "2 rows of 461 wrong, by content": "what hangs on a row's content alone is seen only if one of the signals has it",
}
"""Faults that nothing sees, and why; docs/explanation/numerics.md has their effects."""

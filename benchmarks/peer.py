"""One peer, measured in a process of its own: ``python -m benchmarks.peer NAME CLIPS_FOLDER WEIGHTS.npz``.

Prints a JSON object: seconds to load, wall and processor seconds from a loaded model to the last embedding, peak
memory, and the first clip's embeddings (which say whether the peer computes the same).  Each is used as its own
documents say, or better where its name says so.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from runner.devices.host import peak_rss_mib

Embed = Callable[[list[Path]], Iterator[np.ndarray]]


def reference_examples(path: Path) -> np.ndarray:
    """A file's log-mel examples as the reference scripts compute them, in NumPy: float32 [n, 96, 64]."""
    import resampy

    from runner.vggish.mel import hann_window, mel_matrix

    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    wave = samples.mean(axis=1) / 32768.0
    if rate != 16_000:
        wave = resampy.resample(wave, rate, 16_000)
    frames = np.lib.stride_tricks.sliding_window_view(wave, 400)[::160] * hann_window()
    log_mel = np.log(np.abs(np.fft.rfft(frames, 512)) @ mel_matrix() + 0.01)
    return log_mel[: len(log_mel) // 96 * 96].reshape(-1, 96, 64).astype(np.float32)


def google_style(weights: dict[str, np.ndarray]) -> Embed:
    """As the AudioSet release's inference script: a v1 session, one file at a time."""
    import tensorflow.compat.v1 as tf

    from runner.vggish import network

    graph = tf.Graph()
    with graph.as_default():
        examples = tf.placeholder(tf.float32, [None, 96, 64])
        placeholders = {name: tf.placeholder(tf.float32, array.shape) for name, array in weights.items()}
        variables = {name: tf.Variable(placeholders[name]) for name in weights}
        embeddings = network.embed(variables, examples, tf.float32)
        session = tf.Session()
        session.run(tf.global_variables_initializer(), {placeholders[name]: weights[name] for name in weights})

    def embed(paths: list[Path]) -> Iterator[np.ndarray]:
        for path in paths:
            yield session.run(embeddings, {examples: reference_examples(path)})

    return embed


def torchvggish(weights: dict[str, np.ndarray]) -> Embed:
    """torchvggish as its README uses it: ``model.forward(wavfile_to_examples(file))``, gradients and all."""
    from torchvggish import vggish_input

    model = _torch_model(weights)

    def embed(paths: list[Path]) -> Iterator[np.ndarray]:
        for path in paths:
            yield model.forward(vggish_input.wavfile_to_examples(str(path))).detach().numpy()

    return embed


def torchvggish_batched(weights: dict[str, np.ndarray], precision: str = "float32") -> Embed:
    """torchvggish's network at its best: batches across files, channels last, no gradients, log-mel beside it."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    model = _torch_model(weights).to(memory_format=torch.channels_last)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)

    def embed(paths: list[Path]) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(1) as threads, torch.inference_mode():
            for batch in threads.map(_examples_of, _groups(paths, 6)):
                images = torch.from_numpy(batch)[:, None].to(memory_format=torch.channels_last)
                if precision == "bfloat16":
                    images = images.to(torch.bfloat16)
                yield model(images).float().numpy()

    return embed


def onnxruntime(weights: dict[str, np.ndarray]) -> Embed:
    """ONNX Runtime on the same network, batches across files, log-mel beside it."""
    from concurrent.futures import ThreadPoolExecutor

    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = ort.InferenceSession(_onnx_model(weights), options, providers=["CPUExecutionProvider"])

    def embed(paths: list[Path]) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(1) as threads:
            for batch in threads.map(_examples_of, _groups(paths, 6)):
                yield session.run(None, {"examples": batch[:, None]})[0]

    return embed


def essentia(weights: dict[str, np.ndarray]) -> Embed:
    """essentia-tensorflow's VGGish predictor on the same network, its own front end, one file at a time."""
    from essentia.standard import MonoLoader, TensorflowPredictVGGish

    graph = Path(sys.argv[3]).with_name("vggish.pb")
    predictor = TensorflowPredictVGGish(
        graphFilename=str(graph), input="examples", output="embeddings", patchHopSize=96, lastPatchMode="discard"
    )

    def embed(paths: list[Path]) -> Iterator[np.ndarray]:
        for path in paths:
            yield predictor(MonoLoader(filename=str(path), sampleRate=16_000, resampleQuality=4)())

    return embed


PEERS: dict[str, Callable[[dict[str, np.ndarray]], Embed]] = {
    "google-style": google_style,
    "torchvggish": torchvggish,
    "torchvggish-batched": torchvggish_batched,
    "torchvggish-batched-bfloat16": lambda weights: torchvggish_batched(weights, "bfloat16"),
    "onnxruntime": onnxruntime,
    "essentia": essentia,
}


def _groups(paths: list[Path], size: int) -> list[list[Path]]:
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def _examples_of(paths: list[Path]) -> np.ndarray:
    return np.concatenate([reference_examples(path) for path in paths])


def _torch_model(weights: dict[str, np.ndarray]):
    """torchvggish's model with these weights, in evaluation mode."""
    import torch
    from torchvggish.torchvggish import VGG, make_layers

    model = VGG(make_layers(), postprocess=False)
    names = ["conv1", "conv2", "conv3/conv3_1", "conv3/conv3_2", "conv4/conv4_1", "conv4/conv4_2"]
    modules = [layer for layer in model.features if isinstance(layer, torch.nn.Conv2d)]
    modules += [layer for layer in model.embeddings if isinstance(layer, torch.nn.Linear)]
    for name, module in zip([*names, "fc1/fc1_1", "fc1/fc1_2", "fc2"], modules, strict=True):
        kernel = weights[f"vggish/{name}/weights"]
        turned = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        module.weight.data = torch.from_numpy(np.ascontiguousarray(turned))
        module.bias.data = torch.from_numpy(weights[f"vggish/{name}/biases"].copy())
    return model.eval()


def _onnx_model(weights: dict[str, np.ndarray]) -> bytes:
    """The network as an ONNX model, [n, 1, 96, 64] to [n, 128]."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, initializers = [], []

    def constant(name: str, array: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    x = "examples"
    layers = ["conv1", "conv2", "conv3/conv3_1", "conv3/conv3_2", "conv4/conv4_1", "conv4/conv4_2"]
    for layer in layers:
        kernel = constant(f"{layer}/w", weights[f"vggish/{layer}/weights"].transpose(3, 2, 0, 1))
        biases = constant(f"{layer}/b", weights[f"vggish/{layer}/biases"])
        nodes.append(helper.make_node("Conv", [x, kernel, biases], [f"{layer}/c"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{layer}/c"], [x := f"{layer}/r"]))
        if layer not in ("conv3/conv3_1", "conv4/conv4_1"):
            nodes.append(helper.make_node("MaxPool", [x], [f"{layer}/p"], kernel_shape=[2, 2], strides=[2, 2]))
            x = f"{layer}/p"
    nodes.append(helper.make_node("Transpose", [x], ["nhwc"], perm=[0, 2, 3, 1]))
    nodes.append(helper.make_node("Flatten", ["nhwc"], [x := "flat"]))
    for layer in ("fc1/fc1_1", "fc1/fc1_2", "fc2"):
        parts = [constant(f"{layer}/{part[0]}", weights[f"vggish/{layer}/{part}"]) for part in ("weights", "biases")]
        inputs = [x, *parts]
        nodes.append(helper.make_node("Gemm", inputs, [x := f"{layer}/g"]))
        if layer != "fc2":
            nodes.append(helper.make_node("Relu", [x], [f"{layer}/r"]))
            x = f"{layer}/r"
    graph = helper.make_graph(
        nodes,
        "vggish",
        [helper.make_tensor_value_info("examples", TensorProto.FLOAT, ["n", 1, 96, 64])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", 128])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def main() -> None:
    """Measure the peer named on the command line."""
    name, folder, weights_path = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    paths = sorted(folder.iterdir())
    start = time.perf_counter()
    with np.load(weights_path) as arrays:
        embed = PEERS[name]({key: arrays[key] for key in arrays})
    first = next(iter(embed(paths[:1])))  # also warms up: what compiles or initialises at the first call
    loaded, cpu = time.perf_counter(), _cpu_s()
    rows = sum(len(embeddings) for embeddings in embed(paths))
    done = {
        "load_s": loaded - start,
        "wall_s": time.perf_counter() - loaded,
        "cpu_s": _cpu_s() - cpu,
        "peak_mib": peak_rss_mib(),
        "rows": rows,
        "first": np.asarray(first, np.float64)[:10].tolist(),
    }
    print(json.dumps(done))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()

"""A PyTorch peer on a GPU, in a process of its own: ``python -m benchmarks.gpu_peer NAME CLIPS WEIGHTS.npz``.

``torchvggish`` is used as its README does.  ``pytorch-pipeline`` is the best that we could write of PyTorch's own
tools: a DataLoader of as many processes as cores, batches of clips read as int16 straight from the file, pinned and
copied while the last one computes, log-mel and VGGish in one ``torch.compile``d float16 module in channels-last form;
its results stay on the GPU to the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch

CLIPS_A_BATCH = 64
EXAMPLES = 10
SAMPLES = 15_600 + (EXAMPLES - 1) * 15_360
"""Of a ten-second clip, as far as its ten examples reach."""
HEADER = 44


class Clips(torch.utils.data.Dataset):
    """Batches of ten-second 16 kHz 16-bit WAV files as int16 [clips, samples]."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return -(-len(self.paths) // CLIPS_A_BATCH)

    def __getitem__(self, number: int) -> torch.Tensor:
        batch = np.empty((CLIPS_A_BATCH, SAMPLES), np.int16)
        paths = self.paths[number * CLIPS_A_BATCH : (number + 1) * CLIPS_A_BATCH]
        for row, path in zip(batch, paths, strict=False):
            with open(path, "rb", buffering=0) as file:
                file.seek(HEADER)
                file.readinto(row.data.cast("B"))
        return torch.from_numpy(batch)


class Vggish(torch.nn.Module):
    """Waveform to embeddings; the network as torchvggish writes it, without its last ReLU."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        from runner.vggish.mel import hann_window, mel_matrix

        self.register_buffer("window", torch.tensor(hann_window(), dtype=torch.float32))
        self.register_buffer("mel", torch.tensor(mel_matrix(), dtype=torch.float32))
        layers: list[torch.nn.Module] = []
        for layer, pool in (
            ("conv1", True),
            ("conv2", True),
            ("conv3/conv3_1", False),
            ("conv3/conv3_2", True),
            ("conv4/conv4_1", False),
            ("conv4/conv4_2", True),
        ):
            kernel = weights[f"vggish/{layer}/weights"]
            convolution = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
            convolution.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            convolution.bias.data = torch.from_numpy(weights[f"vggish/{layer}/biases"].copy())
            layers += [convolution, torch.nn.ReLU(inplace=True)]
            if pool:
                layers.append(torch.nn.MaxPool2d(2))
        self.convolutions = torch.nn.Sequential(*layers)
        dense: list[torch.nn.Module] = []
        for layer in ("fc1/fc1_1", "fc1/fc1_2", "fc2"):
            matrix = weights[f"vggish/{layer}/weights"]
            linear = torch.nn.Linear(*matrix.shape)
            linear.weight.data = torch.from_numpy(np.ascontiguousarray(matrix.T))
            linear.bias.data = torch.from_numpy(weights[f"vggish/{layer}/biases"].copy())
            dense += [linear] if layer == "fc2" else [linear, torch.nn.ReLU(inplace=True)]
        self.dense = torch.nn.Sequential(*dense)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        frames = (waveform.float() / 32768).unfold(1, 400, 160)[:, : 96 * EXAMPLES] * self.window
        magnitude = torch.fft.rfft(frames, 512).abs()
        log_mel = torch.log(magnitude @ self.mel + 0.01).reshape(-1, 1, 96, 64)
        images = log_mel.half().contiguous(memory_format=torch.channels_last)
        features = self.convolutions(images).permute(0, 2, 3, 1).reshape(-1, 12288)
        return self.dense(features).float()


def pipeline(paths: list[str], weights: dict[str, np.ndarray]) -> dict[str, float]:
    """The best of PyTorch."""
    torch.backends.cudnn.benchmark = True
    model = Vggish(weights).eval().cuda()
    model.convolutions.half().to(memory_format=torch.channels_last)
    model.dense.half()
    program = torch.compile(model)
    loader = torch.utils.data.DataLoader(
        Clips(paths),
        batch_size=None,
        num_workers=len(os.sched_getaffinity(0)),
        pin_memory=True,
        prefetch_factor=4,
        persistent_workers=True,
    )
    results = []
    with torch.inference_mode():
        warm = torch.zeros((CLIPS_A_BATCH, SAMPLES), dtype=torch.int16).cuda()
        for _ in range(5):
            program(warm).cpu()
        torch.cuda.synchronize()
        alone = time.perf_counter()
        for _ in range(50):
            last = program(warm)
        last.cpu()
        alone = 50 * CLIPS_A_BATCH * EXAMPLES / (time.perf_counter() - alone)
        batches = iter(loader)
        first = next(batches)  # the processes are started by now
        start = time.perf_counter()
        for batch in batches:
            results.append(program(batch.cuda(non_blocking=True)))
        torch.cat(results).cpu()
        taken = time.perf_counter() - start
    clips = len(paths) - len(first)
    return {"x_realtime": 10 * clips / taken, "model_only_realtime_factor": 0.96 * alone}


def torchvggish(paths: list[str], weights: dict[str, np.ndarray]) -> dict[str, float]:
    """One file at a time."""
    sys.modules.setdefault("resampy", types.ModuleType("resampy"))  # imported, but 16 kHz files need none of it
    from torchvggish import vggish_input
    from torchvggish.torchvggish import VGG, make_layers

    model = VGG(make_layers(), postprocess=False).eval().cuda()

    def embed(path: str) -> torch.Tensor:
        return model.forward(vggish_input.wavfile_to_examples(path).cuda()).detach().cpu()

    for path in paths[:5]:
        embed(path)
    start = time.perf_counter()
    for path in paths:
        embed(path)
    return {"x_realtime": 10 * len(paths) / (time.perf_counter() - start)}


def main() -> None:
    """Measure the peer named on the command line."""
    name, folder, weights_path = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    paths = sorted(str(path) for path in folder.rglob("*.wav"))
    start = time.perf_counter()
    with np.load(weights_path) as arrays:
        weights = {key: arrays[key] for key in arrays}
    found = {"pytorch-pipeline": pipeline, "torchvggish": torchvggish}[name](paths, weights)
    print(json.dumps({**found, "load_s": time.perf_counter() - start}))


if __name__ == "__main__":
    main()

"""Decoders beside libsndfile, by format: ``python -m benchmarks.decoders``.

Prints × realtime per core-second of decoding alone (medians of interleaved rounds, on one thread), whether each decoder
gives as many frames as libsndfile, and the largest differences of samples and of log-mels, of synthesised recordings
and of the files named (``--files``, which are not timed).  A resampled log-mel must be within 5e-4 for a decoder to
stand in for libsndfile.  Needs the extras ``av`` and ``flac``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import miniaudio
import numpy as np
import soundfile

from benchmarks.data import KINDS, SECONDS, make_clips
from runner.audio.framing import Framing, WindowCutter
from runner.audio.resample import StreamResampler
from runner.vggish.reference import reference_log_mel
from runner.vggish.spec import VGGISH

Decoder = Callable[[Path], np.ndarray]
"""Returns float32 [frames, channels]."""


def by_libsndfile(path: Path) -> np.ndarray:
    """Decode as the runner does."""
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


def _by_miniaudio(read: Callable[[bytes], miniaudio.DecodedSoundFile]) -> Decoder:
    """Decode by dr_flac, dr_mp3 or stb_vorbis."""

    def decode(path: Path) -> np.ndarray:
        decoded = read(path.read_bytes())
        samples = np.frombuffer(decoded.samples, np.dtype(decoded.samples.typecode))
        return _as_float(samples.reshape(-1, decoded.nchannels))

    return decode


def by_ffmpeg(path: Path) -> np.ndarray:
    """Decode by FFmpeg's own decoders."""
    with av.open(path) as container:
        return _joined([frame for packet in container.demux(audio=0) for frame in packet.decode()])


def by_libopus(path: Path) -> np.ndarray:
    """Decode Opus by the libopus of PyAV's FFmpeg."""
    with av.open(path) as container:
        stream = container.streams.audio[0]
        decoder = av.CodecContext.create("libopus", "r")
        decoder.options = {"request_sample_fmt": "flt"}  # without it 16 bits
        decoder.extradata, decoder.layout = stream.codec_context.extradata, stream.codec_context.layout
        decoder.sample_rate = 48_000
        return _joined([frame for packet in container.demux(stream) for frame in decoder.decode(packet)])


def _joined(frames: Sequence[av.AudioFrame]) -> np.ndarray:
    blocks = [frame.to_ndarray() for frame in frames]
    if not frames[0].format.is_planar:
        blocks = [block.reshape(-1, frame.layout.nb_channels).T for block, frame in zip(blocks, frames, strict=True)]
    return _as_float(np.concatenate(blocks, axis=1).T)


def _as_float(samples: np.ndarray) -> np.ndarray:
    if samples.dtype == np.float32:
        return samples
    return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))


DECODERS: dict[str, dict[str, Decoder]] = {
    "flac": {"miniaudio": _by_miniaudio(miniaudio.flac_read_s16), "FFmpeg": by_ffmpeg},
    "mp3": {"miniaudio": _by_miniaudio(miniaudio.mp3_read_f32), "FFmpeg": by_ffmpeg},
    "ogg": {"miniaudio": _by_miniaudio(miniaudio.vorbis_read), "FFmpeg": by_ffmpeg},
    "opus": {"FFmpeg": by_ffmpeg, "libopus by FFmpeg": by_libopus},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=8, help="of ten seconds, a format")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="further files to compare")
    options = parser.parse_args()
    print(f"{'':26s}{'files':>7s}{'× realtime':>12s}{'frames':>9s}{'samples':>10s}{'log-mel':>10s}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in [kind for kind, (extension, *_) in KINDS.items() if extension in DECODERS]:
            extension = KINDS[kind][0]
            clips = make_clips(Path(folder), kind, options.clips)
            decoders = {"libsndfile": by_libsndfile, **DECODERS[extension]}
            speeds = _speeds(decoders, clips, options.rounds)
            more = [path for path in options.files if path.suffix in (f".{extension}", {"ogg": ".oga"}.get(extension))]
            for name, decode in decoders.items():
                print(
                    f"{kind:8s}{name:18s}{len(clips + more):7d}{speeds[name]:12,.0f}{_compared(decode, clips + more)}"
                )


def _speeds(decoders: dict[str, Decoder], clips: Sequence[Path], rounds: int) -> dict[str, float]:
    """Return each decoder's × realtime per core-second."""
    taken: dict[str, list[float]] = {name: [] for name in decoders}
    for number in range(rounds + 1):
        for name, decode in decoders.items():
            start = time.process_time()
            for clip in clips:
                decode(clip)
            if number:  # the first round warms up
                taken[name].append(time.process_time() - start)
    return {name: SECONDS * len(clips) / statistics.median(times) for name, times in taken.items()}


def _compared(decode: Decoder, files: Sequence[Path]) -> str:
    """Return columns: files with other frames, the largest differences of samples and of log-mels elsewhere."""
    others, samples, log_mels = 0, [0.0], [0.0]
    for path in files:
        try:
            expected, rate = by_libsndfile(path), soundfile.info(path).samplerate
        except soundfile.LibsndfileError:
            continue
        try:
            decoded = decode(path)
        except (av.FFmpegError, miniaudio.DecodeError):
            decoded = np.empty((0, 0), np.float32)
        if decoded.shape != expected.shape:
            others += 1
            continue
        samples.append(float(np.abs(decoded - expected).max(initial=0.0)))
        difference = np.abs(_log_mel(decoded, rate) - _log_mel(expected, rate))
        log_mels.append(float(difference.max(initial=0.0)))
    return f"{f'{others} ≠' if others else '=':>9s}{max(samples):10.1e}{max(log_mels):10.1e}"


def _log_mel(samples: np.ndarray, rate: int) -> np.ndarray:
    stream = StreamResampler(rate, VGGISH.sample_rate, "kaiser_best")
    waveform = np.concatenate([stream.push(samples.mean(axis=1)), stream.finish()])
    cutter = WindowCutter(Framing.of(VGGISH))
    return reference_log_mel(np.concatenate([cutter.push(waveform), cutter.finish()]))


if __name__ == "__main__":
    main()

"""Kaldi filterbank features of a batch beside kaldi-native-fbank, in one process.

    python benchmarks/bench_fbank.py [--batch 32] [--seconds 10] [--rounds 9] [--threads 1 2]

Contestants take turns; a time is the median over the rounds. Each number of threads is measured by itself: ours are torch's,
kaldi-native-fbank's share the clips. It takes a list of floats sooner than an array, so both are measured: an array is what
both start from in use, a list made beforehand shows its arithmetic alone. Prints a table for each number of threads and ends
with one JSON line.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import kaldi_native_fbank
import numpy as np
import torch
from torch import Tensor

from phonograph.audio.fbank import fbank, frame_count
from phonograph.benchmarks import medians, processor, versions

RATE = 16000
OURS = "phonograph fp32"


def kaldi_options() -> Any:
    """Those of `fbank`."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = RATE
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    return options


def kaldi_fbank(options: Any, samples: Any) -> np.ndarray:
    """Features (frames, 80) of one clip, an array or a list."""
    extractor = kaldi_native_fbank.OnlineFbank(options)
    extractor.accept_waveform(RATE, samples)
    extractor.input_finished()
    return np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])


def contestants(batch: Tensor, pool: ThreadPoolExecutor) -> dict[str, Callable[[], Any]]:
    """By name, what computes the features of the batch (clips, samples)."""
    options = kaldi_options()
    double = batch.double()

    def theirs(clips: Sequence[Any]) -> list[np.ndarray]:
        return list(pool.map(partial(kaldi_fbank, options), clips))

    return {
        OURS: lambda: fbank(batch),
        "phonograph fp64": lambda: fbank(double),
        "kaldi-native-fbank, arrays": partial(theirs, [clip.numpy() for clip in batch]),
        "kaldi-native-fbank, lists": partial(theirs, batch.tolist()),
    }


def measure(batch: Tensor, threads: int, rounds: int) -> dict[str, float]:
    """Median seconds of each contestant."""
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(threads) as pool:
        return medians(contestants(batch, pool), rounds)


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()

    samples = round(options.seconds * RATE)
    batch = 3000 * torch.randn(options.batch, samples, generator=torch.Generator().manual_seed(0))
    frames = options.batch * frame_count(samples, RATE)
    results = []
    for threads in options.threads:
        seconds = measure(batch, threads, options.rounds)
        print(f"{options.batch} clips of {options.seconds:g} s, {threads} thread{'s' * (threads > 1)}")
        print(f"{'':28}{'ms':>9}{'us a frame':>12}{'of ours':>9}")
        for name, value in seconds.items():
            print(f"{name:28}{1e3 * value:9.1f}{1e6 * value / frames:12.3f}{value / seconds[OURS]:8.1f}x")
        results.append({"threads": threads, "seconds": seconds})
    report = {
        "benchmark": "fbank",
        "clips": options.batch,
        "seconds_of_audio": options.seconds,
        "rounds": options.rounds,
        "processor": processor(),
        "versions": versions("kaldi-native-fbank"),
        "results": results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

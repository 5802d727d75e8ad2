"""Benchmark of collections: speed beside the network's own, search, and memory by N.

    python -m tests.benchmark_collect [--layer 31] [-o assets/benchmark_collect.csv]

Speed and search with 1,000 photos of 128 x 128; memory with 200 and 2,000 of 64 x 64, which is a
matter of N and not of pixels. Each measurement runs in a process of its own, with one thread, and
counts its processor seconds, since others may use the machine; read ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import bilrp
from bilrp import collect, measured


@dataclass(frozen=True)
class Noise:
    """Photos drawn when they are read, so that the input itself takes no memory."""

    first: int
    count: int
    size: int
    about: str = "noise"

    @property
    def names(self) -> list[str]:
        return [str(self.first + i) for i in range(self.count)]

    def part(self, start: int, stop: int) -> Noise:
        return Noise(self.first + start, stop - start, self.size)

    def read(self, i: int) -> Tensor:
        seeded = torch.Generator().manual_seed(self.first + i)
        return bilrp.normalize(torch.rand(3, self.size, self.size, generator=seeded))

    def stamp(self, i: int) -> str:
        return str(self.first + i)

    def digest(self, i: int) -> str:
        return str(self.first + i)


def peak() -> float:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int, size: int, layer: int) -> dict[str, float]:
    """Build and search one store; processor seconds, and peak memory in MB."""
    torch.set_num_threads(1)
    model, clock = bilrp.vgg16(layer), time.process_time
    inputs = Noise(0, count, size)
    batch = torch.stack([inputs.read(i) for i in range(32)])
    forward = []

    def pass_forward() -> None:
        with torch.no_grad():
            start = clock()
            model(batch)
            forward.append((clock() - start) / 32)

    pass_forward()  # the first one is slower
    forward.clear()
    for _ in range(3):
        pass_forward()
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        store = collect.build(Path(folder) / "store", inputs, model, bilrp.vgg16_rules())
        built, after_build = (clock() - start) / count, peak()
        for _ in range(3):  # before and after, since a busy machine changes its pace
            pass_forward()
        query = store.query(inputs.read(0))
        start = clock()
        collect.nearest(store, query, 5)  # reads and checks all chunks, once
        first = clock() - start
        seconds, walls = [], []
        for _ in range(20):
            start, wall = clock(), time.perf_counter()
            collect.nearest(store, query, 5)
            seconds.append(clock() - start)
            walls.append(time.perf_counter() - wall)
    return {
        "count": count,
        "size": size,
        "layer": layer,
        "forward": statistics.median(forward),
        "built": built,
        "ratio": built / statistics.median(forward),
        "first search": first,
        "search": statistics.median(seconds),
        "search wall": statistics.median(walls),
        "peak of build": after_build,
        "peak of search": peak(),
    }


def in_child(*numbers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmark_collect", "--one", *map(str, numbers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--layer", type=int, default=31)
    parser.add_argument("-o", "--output", type=Path, help="keep the table in this file")
    parser.add_argument("--one", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    n, size = options.count, options.size
    asked = ((n, size), (n // 5, size // 2), (2 * n, size // 2))
    rows = [in_child(*what, options.layer) for what in asked]
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if options.output:
        measured.write(options.output, rows, "python -m tests.benchmark_collect")


if __name__ == "__main__":
    main()

"""Benchmark of collections: speed beside the network's own, search, and memory by N.

    python -m tests.benchmark_collect [--count 1000] [--size 128] [--layer 31]

Each measurement runs in a process of its own. Times are of this machine as it is now; read ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import bilrp
from bilrp import collect


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


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Build and search one store; seconds and peak memory in MB."""
    model = bilrp.vgg16(options.layer)
    inputs = Noise(0, options.count, options.size)
    some = [torch.stack([inputs.read(i) for i in range(n, n + 32)]) for n in (0, 32)]
    with torch.no_grad():
        model(some[0])
        start = time.perf_counter()
        for batch in some:
            model(batch)
    forward = (time.perf_counter() - start) / 64
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = collect.build(Path(folder) / "store", inputs, model, bilrp.vgg16_rules())
        built = (time.perf_counter() - start) / options.count
        query = store.query(inputs.read(0))
        collect.nearest(store, query, 5)  # reads and checks all chunks, once
        start = time.perf_counter()
        for _ in range(5):
            collect.nearest(store, query, 5)
        searched = (time.perf_counter() - start) / 5
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"forward": forward, "built": built, "searched": searched, "peak": peak}


def in_child(count: int, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmark_collect", "--one", "--count", str(count)]
    command += ["--size", str(options.size), "--layer", str(options.layer)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--layer", type=int, default=31)
    parser.add_argument("--one", action="store_true", help="one measurement, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    rows = {n: in_child(n, options) for n in (options.count // 5, options.count, 2 * options.count)}
    print(f"VGG-16 layer {options.layer}, {options.size} pixels\n")
    print("| N | build over forward pass, a photo | search, ms | peak memory, MB |")
    print("|---:|---:|---:|---:|")
    for n, row in rows.items():
        ratio, search = row["built"] / row["forward"], 1000 * row["searched"]
        print(f"| {n:,} | {ratio:.2f} | {search:.1f} | {row['peak']:,.0f} |")


if __name__ == "__main__":
    main()

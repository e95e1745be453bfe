# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""Clocks of an operator on a GPU: from a cold queue, with a full one, and as a CUDA graph."""

from __future__ import annotations

import statistics

import torch

from benchmarks.timing import now


def capture(function):
    """A CUDA graph of a function, and what it returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def cold(function, device: str, repetitions: int = 15) -> float:
    """Milliseconds from an idle GPU to an idle GPU, the host's part included."""
    times = []
    for _ in range(repetitions + 2):
        start = now(device)
        function()
        times.append((now(device) - start) * 1e3)
    return statistics.median(times[2:])


def queued(function, device: str, calls: int = 10, rounds: int = 3) -> float:
    """Milliseconds of the GPU alone: the host has launched everything before the first kernel begins."""
    if device != 'cuda':
        return cold(function, device, calls)
    times = []
    for _ in range(rounds):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(3e6) * calls)  # about 1.5 ms for each call
        first.record()
        for _ in range(calls):
            function()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / calls)
    return min(times)

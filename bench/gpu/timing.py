"""Times work on a GPU: CUDA events around passes over several layers, replayed from a graph where one can be captured.

On the CPU by the host's clock: for the tests of this bench, not for figures.
"""

import time

import torch


def statistics(samples):
    ordered = torch.tensor(samples, dtype=torch.float64)
    p10, p50, p90 = ordered.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return {"medianMs": p50, "p10Ms": p10, "p90Ms": p90, "samples": len(samples)}


def capture(work):
    """A graph of what `work` queues, and what it returned. It has run before: libraries are loaded and tuned."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph, results


def sample(work, device, calls, seconds, least=5, most=200):
    """Milliseconds of one of the `calls` that each run of `work` makes, again and again."""
    measure = _event_ms if device.type == "cuda" else _clock_ms
    measure(work)
    samples = []
    end = time.perf_counter() + seconds
    while len(samples) < least or (time.perf_counter() < end and len(samples) < most):
        samples.append(measure(work) / calls)
    return samples


def _event_ms(work):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _clock_ms(work):
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)


def layers_to_rotate(touched_bytes, layer_bytes, device):
    """So many layers that by the time one comes round again the caches have forgotten it, as far as memory allows."""
    if device.type != "cuda":
        return 2
    torch.cuda.empty_cache()
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    free, _ = torch.cuda.mem_get_info(device)
    wanted = 1 + -(-2 * cache // max(int(touched_bytes), 1))
    return max(1, min(wanted, 16, int(0.6 * free // layer_bytes)))

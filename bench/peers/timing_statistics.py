"""How long calls take: what lib/bench/timing.ts does for those in JavaScript."""

import time

import numpy as np


def time_calls(run, seconds, least):
    """Calls for so many seconds, and at least so often; the fields of `Stats` of lib/bench/timing.ts, in milliseconds."""
    times = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - begin))
    p10, p50, p90, p99 = (float(q) for q in np.quantile(times, [0.1, 0.5, 0.9, 0.99]))
    return {"medianMs": p50, "p10Ms": p10, "p90Ms": p90, "p99Ms": p99, "samples": len(times)}

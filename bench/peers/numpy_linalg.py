"""LAPACK through numpy: gesdd of a random matrix, or eigh of its Gram matrix.

    python numpy_linalg.py <gesdd|eigh> <rows> <cols> <f32|f64>

Prints its version as a line of JSON. Then decomposes once for every line on standard input, and prints the milliseconds.
"""

import json
import sys
import time

import numpy as np


def blas():
    """The BLAS library that numpy loaded."""
    with open("/proc/self/maps", encoding="utf8") as maps:
        paths = {line.split()[-1] for line in maps if "/" in line}
    names = [path.rsplit("/", 1)[1] for path in paths]
    found = [n for n in names if "openblas" in n or "mkl_rt" in n or "blis" in n] or [n for n in names if "blas" in n]
    return found[0] if found else "unknown BLAS"


what, rows, cols, dtype = sys.argv[1:]
rows, cols = int(rows), int(cols)
a = np.random.default_rng(1).standard_normal((rows, cols)).astype({"f32": np.float32, "f64": np.float64}[dtype])
if what == "eigh":
    gram = a.T @ a
    run = lambda: np.linalg.eigh(gram)
    values, vectors = run()
    error = np.linalg.norm(gram @ vectors - vectors * values) / np.linalg.norm(gram)
else:
    run = lambda: np.linalg.svd(a, full_matrices=False)
    u, s, vt = run()
    error = np.linalg.norm((u * s) @ vt - a) / np.linalg.norm(a)
if not error < 1e-4:
    sys.exit(f"wrong result: relative error {error}")


def answer(line):
    print(json.dumps(line), flush=True)


answer({"version": f"numpy {np.__version__}, {blas()}"})
for _ in sys.stdin:
    begin = time.perf_counter()
    run()
    answer({"ms": 1e3 * (time.perf_counter() - begin)})

"""MoE layers with the same weights in PyTorch on the CPU, two ways: a loop over experts, and torch._grouped_mm where this version has it.

    python torch_layer.py <folder> <f32|bf16> <n> <m> <N> <K> <T> <threads> <layers> <pool length> <pool stride>

layer-files.ts writes the folder. Both ways sort tokens by expert, as part of what is timed, and are held against the f64
reference first. Then prints one line of JSON: its version, and which way is absent and why. For every line on standard input,
which names a way, it runs all layers and prints the milliseconds.
"""

import json
import sys
import time

import numpy as np
import torch
from torch.nn.functional import silu

folder, dtype_name = sys.argv[1:3]
n, m, experts, top_k, tokens, threads, count, pool_length, pool_stride = (int(a) for a in sys.argv[3:12])
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype_name]
torch.set_num_threads(threads)


def read(name, dtype=np.float32):
    return np.fromfile(f"{folder}/{name}", dtype)


def stack(pool, operator, shape):
    """The matrices of all experts: a matrix is the pool from seed * stride on, cyclically."""
    doubled = torch.from_numpy(np.concatenate([pool, pool])).to(dtype)
    size = shape[0] * shape[1]
    out = torch.empty(experts, *shape, dtype=dtype)
    for expert in range(experts):
        begin = (3 * expert + 1 + operator) * pool_stride % pool_length
        for at in range(0, size, pool_length):
            count = min(size - at, pool_length)
            out[expert].view(-1)[at : at + count] = doubled[begin : begin + count]
    return out


gate, up = (stack(read("pool-n"), operator, (m, n)) for operator in (0, 1))
first = (gate, up, stack(read("pool-m"), 2, (n, m)))
layers = [first] + [tuple(w.clone() for w in first) for _ in range(count - 1)]
x = torch.from_numpy(read("x")).view(tokens, n)
ids = torch.from_numpy(read("ids", np.int32)).long()
weights = torch.from_numpy(read("weights"))


def sort():
    order = ids.argsort(stable=True)
    return order, order // top_k, torch.bincount(ids, minlength=experts)


def combine(rows, token, order):
    y = torch.zeros(tokens, n)
    return y.index_add_(0, token, rows.float() * weights[order, None])


def loop(gate, up, down):
    order, token, counts = sort()
    y = torch.zeros(tokens, n)
    begin = 0
    narrow = x.to(dtype)
    for expert, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        slots = order[begin : begin + count]
        rows = narrow[token[begin : begin + count]]
        hidden = silu(rows @ gate[expert].T) * (rows @ up[expert].T)
        y.index_add_(0, token[begin : begin + count], (hidden @ down[expert].T).float() * weights[slots, None])
        begin += count
    return y


def grouped_mm(gate, up, down):
    order, token, counts = sort()
    ends = counts.cumsum(0).to(torch.int32)
    rows = x.to(dtype)[token]
    product = lambda a, w: torch._grouped_mm(a, w.transpose(-2, -1), offs=ends)
    hidden = silu(product(rows, gate)) * product(rows, up)
    return combine(product(hidden, down), token, order)


def check(run):
    wanted = torch.from_numpy(read("wanted")).view(-1, n).double()
    for layer in layers:
        y = run(*layer)
        error = ((y[sorted({0, tokens - 1})].double() - wanted).norm() / wanted.norm()).item()
        # Activations are rounded to bf16 as well where the weights are bf16.
        if not error <= (2e-2 if dtype == torch.bfloat16 else 1e-4):
            raise RuntimeError(f"wrong result: relative error {error}")


def answer(line):
    print(json.dumps(line), flush=True)


ways = {"loop": loop, "grouped_mm": grouped_mm}
with torch.no_grad():
    absent = {}
    for name, run in ways.items():
        try:
            check(run)
        except (AttributeError, RuntimeError) as error:  # what this version lacks
            absent[name] = str(error).splitlines()[0][:200]
    answer({"version": f"torch {torch.__version__}", "absent": absent})
    for line in sys.stdin:
        begin = time.perf_counter()
        for layer in layers:
            ways[line.strip()](*layer)
        answer({"ms": 1e3 * (time.perf_counter() - begin)})

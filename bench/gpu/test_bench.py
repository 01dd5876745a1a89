"""What of this bench can be tested without a GPU: python -m unittest, in this folder.

The compositions run on the CPU; Triton's kernels in its interpreter, which cannot multiply bf16, and through its compiler
for compute capability 9.0, as far as machine code.
"""

import os
import subprocess
import sys
import unittest

import torch

import factorization
import molae
import peers
import run
from cells import Cell
from layer import Batch, Layer, check
from timing import statistics

CPU = torch.device("cpu")
# Sizes that no tile divides, and experts that get no token.
CELLS = [Cell("even", 64, 48, 6, 2), Cell("odd", 72, 40, 9, 3), Cell("one expert", 32, 64, 1, 1)]


def cases(dtypes):
    for cell in CELLS:
        for dtype in dtypes:
            for tokens in (1, 3, 50):
                generator = torch.Generator().manual_seed(tokens)
                layer = Layer(cell, dtype, CPU, generator)
                yield layer, Batch(cell, tokens, dtype, CPU, generator)


class Peers(unittest.TestCase):
    def test_compositions(self):
        for kind in (peers.GroupedMm, peers.ExpertLoop, peers.TransformersExperts):
            for layer, batch in cases([torch.float32, torch.bfloat16]):
                with self.subTest(peer=kind.name, cell=layer.cell.model, tokens=batch.x.shape[0]), torch.no_grad():
                    try:
                        peer = kind(layer)
                    except ImportError as error:
                        self.skipTest(str(error))
                    check(layer, batch, peer(batch))

    def test_dense_product_has_the_flops_of_the_layer(self):
        for layer, batch in cases([torch.bfloat16]):
            if layer.cell.experts < 2:
                continue
            dense = peers.DenseProduct(layer)
            rows = dense.rows(batch)
            dense.check(rows, dense.product(rows))
            flops = 2 * rows.shape[0] * rows.shape[1] * dense.weight.shape[0]
            self.assertEqual(flops, layer.cell.flops(batch.x.shape[0]))

    def test_a_wrong_result_is_found(self):
        for layer, batch in cases([torch.float32]):
            y = peers.ExpertLoop(layer)(batch)
            y[-1, 0] += 1
            with self.assertRaises(RuntimeError):
                check(layer, batch, y)
            y[-1, 0] = float("nan")
            with self.assertRaises(RuntimeError):
                check(layer, batch, y)

    def test_a_refilled_batch_is_another_one(self):
        layer, batch = list(cases([torch.float32]))[2]
        before = peers.ExpertLoop(layer)(batch)
        batch.refill()
        with self.assertRaises(RuntimeError):
            check(layer, batch, before)


@unittest.skipUnless(os.environ.get("TRITON_INTERPRET") == "1", "needs TRITON_INTERPRET=1")
class TritonInterpreted(unittest.TestCase):
    def test_every_tile(self):
        from triton_moe import TritonExperts, tiles_for

        for layer, batch in cases([torch.float32, torch.float16]):
            for average in (1, 50, 500):
                for tile in tiles_for(average)[:2]:
                    with self.subTest(cell=layer.cell.model, tokens=batch.x.shape[0], tile=tile):
                        check(layer, batch, TritonExperts(layer, tile)(batch))


@unittest.skipIf(os.environ.get("TRITON_INTERPRET") == "1", "needs a process without TRITON_INTERPRET")
class TritonCompiled(unittest.TestCase):
    def test_every_tile_without_spilled_registers(self):
        try:
            import triton_moe
        except ImportError as error:
            self.skipTest(str(error))
        for average in (1, 50, 500):
            for tile in triton_moe.tiles_for(average):
                for kernel in (triton_moe.gate_up_kernel, triton_moe.down_kernel):
                    with self.subTest(kernel=kernel.__name__, tile=tile):
                        compiled = compile_for_hopper(kernel, tile)
                        ptx = compiled.asm["ptx"]
                        self.assertIn("wgmma.mma_async" if tile.rows >= 64 else "mma.sync", ptx)
                        self.assertIn("cp.async", ptx)
                        self.assertNotIn("ld.local", ptx)
                        self.assertLessEqual(compiled.metadata.shared, 227 * 1024)
                        self.assertIn("cubin", compiled.asm)


def compile_for_hopper(kernel, tile):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"order": "*i64", "routing_weights": "*fp32", "tile_expert": "*i32", "tile_begin": "*i32", "ends": "*i32"}
    pointers |= {name: "*bf16" for name in ("x", "weights", "hidden", "out")}
    sizes = {"ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner, "GROUP": 8}
    names = kernel.arg_names
    types = {name: "constexpr" if name in sizes else pointers.get(name, "i32") for name in names}
    multiples = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in (*pointers, "n", "m")}
    constants = {(names.index(name),): value for name, value in sizes.items()}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=multiples)
    launch = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)


class Factorization(unittest.TestCase):
    def test_both_ways_reach_the_least_error(self):
        experts = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        for solver in factorization.PEERS.values():
            factorization.check(experts, *factorization.factorize(solver, experts, 8), 8)

    def test_another_basis_is_found_wrong(self):
        experts = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(1))
        first = lambda stack, rank: torch.eye(stack.shape[1])[:rank]
        with self.assertRaises(RuntimeError):
            factorization.check(experts, *factorization.factorize(first, experts, 8), 8)


class Report(unittest.TestCase):
    RESULTS = [
        {"name": "device copy", "tiles": "mma", "launch": "stream", "tokens": 0, "medianMs": 1, "gflops": 0},
        {"name": "dense product 8192", "tiles": "mma", "launch": "stream", "tokens": 0, "medianMs": 1, "gflops": 9},
        {"name": "dense olmoe k8 r512", "tiles": "mma", "launch": "stream", "tokens": 4, "medianMs": 2, "gflops": 3},
        {"name": "latent olmoe k8 r512", "tiles": "hopper", "launch": "graph", "tokens": 4, "medianMs": 1, "gflops": 5},
        {"name": "factorization gram", "tiles": "mma", "launch": "stream", "tokens": 0, "medianMs": 7, "gflops": 0},
    ]

    def test_rows_of_molae_device_bench(self):
        rows = molae.rows_of({"results": self.RESULTS})
        self.assertEqual(
            [row["peer"] for row in rows],
            ["molae dense, mma tiles, stream", "molae latent k8 r512, hopper tiles, graph", "molae gram"],
        )

    def test_ratios(self):
        rows = molae.rows_of({"results": self.RESULTS})
        rows.append({"what": "layer", "model": "olmoe", "tokens": 4, "peer": "triton fused", "medianMs": 3.0})
        rows.append({"what": "layer", "model": "olmoe", "tokens": 16, "peer": "triton fused", "medianMs": 3.0})
        (table,) = run.ratios(rows)
        self.assertEqual(table["timesOurs"]["triton fused"], 1.5)

    def test_statistics(self):
        self.assertEqual(statistics([3.0, 1.0, 2.0])["medianMs"], 2.0)

    def test_a_whole_run(self):
        result = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"molae-peers-{os.getpid()}.json")
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "run.py", result, "--smoke", "--device", "cpu", "--molae-json", "nowhere.json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.addCleanup(os.remove, result)
        self.assertIn("triton fused", done.stderr)


if __name__ == "__main__":
    unittest.main()

"""The layers of the bench: lib/bench/cells.ts, and the one that test/cuda/device_bench.cc has beside them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    model: str
    n: int  # hidden size
    m: int  # intermediate size of an expert
    experts: int
    top_k: int

    def flops(self, tokens):
        """Useful ones of the routed experts: three products of a row for each (token, expert)."""
        return 6 * tokens * self.top_k * self.n * self.m

    def touched_bytes(self, tokens, item_bytes=2):
        """Of the weights of the experts that uniform routing is expected to meet."""
        met = self.experts * (1 - (1 - self.top_k / self.experts) ** tokens)
        return 3 * self.n * self.m * met * item_bytes

    def bytes(self, item_bytes=2):
        return 3 * self.n * self.m * self.experts * item_bytes


CELLS = [
    Cell("qwen1.5-moe", 2048, 1408, 60, 4),
    Cell("olmoe", 2048, 1024, 64, 8),
    Cell("qwen3-30b-a3b", 2048, 768, 128, 8),
    Cell("deepseek-v2-lite", 2048, 1408, 64, 6),
    Cell("deepseek-v3/4", 7168, 2048, 64, 8),  # a quarter of the model's 256 experts
]
SMOKE_CELLS = [Cell("small", 64, 48, 6, 2)]

TOKENS = [1, 4, 16, 64, 512, 4096, 16384]
QUICK_TOKENS = [1, 16, 512, 16384]
SMOKE_TOKENS = [1, 20]

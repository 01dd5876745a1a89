"""One layer of routed experts: random weights, an input, a routing; and what it must give."""

import torch


class Layer:
    def __init__(self, cell, dtype, device, generator):
        self.cell = cell
        self.generator = generator
        self.gate_up = self._matrices(cell.experts, 2 * cell.m, cell.n, dtype, device)
        self.down = self._matrices(cell.experts, cell.n, cell.m, dtype, device)

    def _matrices(self, count, rows, inner, dtype, device):
        return torch.randn(count, rows, inner, dtype=dtype, device=device, generator=self.generator) * inner**-0.5

    @property
    def gate(self):
        return self.gate_up[:, : self.cell.m]

    @property
    def up(self):
        return self.gate_up[:, self.cell.m :]


class Batch:
    """The input of a layer and its routing: uniform, weights that add up to one."""

    def __init__(self, cell, tokens, dtype, device, generator):
        self.generator = generator
        self.x = torch.randn(tokens, cell.n, dtype=dtype, device=device, generator=generator)
        logits = torch.randn(tokens, cell.experts, device=device, generator=generator)
        weights, ids = logits.softmax(-1).topk(cell.top_k)
        self.ids = ids.to(torch.int32)
        self.weights = weights / weights.sum(-1, keepdim=True)

    def refill(self):
        """Other values at the same addresses, for graphs that have captured them."""
        self.x.normal_(generator=self.generator)
        self.ids.copy_(self.ids.roll(1, 0))
        self.weights.copy_(self.weights.roll(1, 0))


def reference(layer, batch, token):
    """One token's result in f64."""
    x = batch.x[token].double()
    y = torch.zeros_like(x)
    for expert, weight in zip(batch.ids[token].tolist(), batch.weights[token].double()):
        gate, up, down = (w[expert].double() for w in (layer.gate, layer.up, layer.down))
        y += weight * (down @ (torch.nn.functional.silu(gate @ x) * (up @ x)))
    return y


TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}


def check(layer, batch, y):
    """The largest relative error of some tokens; raises where it is too large, or where anything was not written."""
    if not torch.isfinite(y).all():
        raise RuntimeError("wrong result: not all of the output was written")
    tokens = batch.x.shape[0]
    worst = 0.0
    for token in sorted({0, tokens // 3, tokens // 2, tokens - 1}):
        wanted = reference(layer, batch, token)
        worst = max(worst, ((y[token].double() - wanted).norm() / wanted.norm()).item())
    if not worst <= TOLERANCES[batch.x.dtype]:
        raise RuntimeError(f"wrong result: relative error {worst:.2e}")
    return worst

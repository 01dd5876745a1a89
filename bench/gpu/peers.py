"""The same layer by others. A peer is made for a layer and returns the result of a batch; `capturable` says whether all that
it does can be in a CUDA graph, that is whether no size comes back to the host.
"""

import torch
from torch.nn.functional import silu


class Sorted:
    """The (token, expert) pairs of a batch by expert, found on the device."""

    def __init__(self, batch, experts):
        self.tokens, self.top_k = batch.ids.shape
        ids, self.order = batch.ids.flatten().sort(stable=True)
        self.token = self.order // self.top_k
        numbers = torch.arange(experts, dtype=ids.dtype, device=ids.device)
        self.ends = torch.searchsorted(ids, numbers, right=True, out_int32=True)

    def combine(self, rows, weights):
        """The weighted sum of a token's rows."""
        by_slot = torch.empty_like(rows)
        by_slot[self.order] = rows
        by_token = by_slot.view(self.tokens, self.top_k, -1)
        return torch.bmm(weights.to(rows.dtype).unsqueeze(1), by_token).squeeze(1)


class GroupedMm:
    """torch._grouped_mm, or what newer versions call it: sort, gather, gate and up in one product, activation, product, sum."""

    name, capturable = "torch grouped_mm", True

    def __init__(self, layer):
        self.layer = layer
        self.product = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm

    def __call__(self, batch):
        pairs = Sorted(batch, self.layer.cell.experts)
        multiply = lambda rows, w: self.product(rows, w.transpose(-2, -1), offs=pairs.ends)
        rows = batch.x[pairs.token]
        gate, up = multiply(rows, self.layer.gate_up).chunk(2, dim=-1)
        return pairs.combine(multiply(silu(gate) * up, self.layer.down), batch.weights)


class ExpertLoop:
    """A product of cuBLAS for each expert and matrix. The host must know the sizes, and waits for them."""

    name, capturable = "expert loop", False

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, batch):
        layer = self.layer
        pairs = Sorted(batch, layer.cell.experts)
        rows = batch.x[pairs.token]
        out = torch.empty_like(rows)
        begin = 0
        for expert, end in enumerate(pairs.ends.tolist()):
            if end == begin:
                continue
            own = rows[begin:end]
            hidden = silu(own @ layer.gate[expert].T) * (own @ layer.up[expert].T)
            torch.mm(hidden, layer.down[expert].T, out=out[begin:end])
            begin = end
        return pairs.combine(out, batch.weights)


class TransformersExperts:
    """The grouped experts of Hugging Face's transformers, in the module that it has for OLMoE."""

    name, capturable = "transformers grouped_mm", True

    def __init__(self, layer):
        from transformers import OlmoeConfig
        from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

        cell = layer.cell
        config = OlmoeConfig(
            hidden_size=cell.n, intermediate_size=cell.m, num_experts=cell.experts, num_experts_per_tok=cell.top_k
        )
        config._experts_implementation = "grouped_mm"
        with torch.device("meta"):
            self.module = OlmoeExperts(config)
        self.module.gate_up_proj = torch.nn.Parameter(layer.gate_up, requires_grad=False)
        self.module.down_proj = torch.nn.Parameter(layer.down, requires_grad=False)

    def __call__(self, batch):
        return self.module(batch.x, batch.ids.long(), batch.weights)


class DenseProduct:
    """No layer: one product of cuBLAS with as many FLOPs, tokens * top_k rows by three experts' matrices side by side."""

    name, capturable = "cublas dense", True

    def __init__(self, layer):
        cell = layer.cell
        flat = layer.gate_up.view(-1, cell.n)
        # Of any experts: their matrices lie one behind the other.
        self.weight = flat[: 3 * cell.m]
        self.top_k = cell.top_k

    def rows(self, batch):
        return batch.x.repeat(self.top_k, 1)

    def product(self, rows):
        return rows @ self.weight.T

    def check(self, rows, out):
        wanted = rows[-1].double() @ self.weight.double().T
        error = ((out[-1].double() - wanted).norm() / wanted.norm()).item()
        if not (torch.isfinite(out).all() and error <= 1e-2):
            raise RuntimeError(f"wrong result: relative error {error:.2e}")
        return error

"""One operator of one group: the best shared basis of its experts, and every expert's projection on it, by torch.linalg.

The sizes are those of test/cuda/device_bench.cc: 15 experts of Qwen1.5-MoE.
"""

import torch

SIZES = {"experts": 15, "rows": 1408, "columns": 2048, "rank": 704}
SMOKE_SIZES = {"experts": 3, "rows": 20, "columns": 32, "rank": 8}


def by_svd(stack, rank):
    return torch.linalg.svd(stack.float(), full_matrices=False).Vh[:rank]


def by_eigh(stack, rank):
    """Eigenvectors of the Gram matrix, in f64: its condition is the square of the stack's."""
    wide = stack.float()
    return torch.linalg.eigh((wide.T @ wide).double()).eigenvectors[:, -rank:].T.float()


def factorize(solver, experts, rank):
    """B and every expert's A, as stored."""
    basis = solver(experts.flatten(0, 1), rank)
    return basis.to(experts.dtype), (experts.float() @ basis.T).to(experts.dtype)


def check(experts, basis, projected, rank):
    """How far the relative error is above the least possible one, by the spectrum in f64."""
    stack = experts.flatten(0, 1).double()
    energies = torch.linalg.eigvalsh(stack.T @ stack)
    least = (energies[:-rank].sum() / energies.sum()).sqrt().item()
    residual = stack - projected.flatten(0, 1).double() @ basis.double()
    reached = (residual.norm() / stack.norm()).item()
    if not reached - least <= 2e-3:
        raise RuntimeError(f"wrong result: relative error {reached:.4f}, where {least:.4f} is possible")
    return reached - least


PEERS = {"torch.linalg.svd": by_svd, "torch.linalg.eigh of the Gram matrix": by_eigh}

"""Loads checkpoints with the real transformers and says how far their logits lie apart: the other half of interop.test.ts.

    python interop.py <jobs.json>

jobs.json: [{"name", "original", "dense", "latent", "tokens"}, ...], tokens a list of ids. Prints one JSON object: for every
name the relative distances of the logits (f32) between

    latent_dense     the latent format through trust_remote_code, and the factors multiplied out in f32 in the source's class
    dense_products   the dense format, and the same products: they differ by the rounding of the dense format's weights
    change           the products, and the original
    latent_logits    of the last token, by the latent format, for another implementation to compare with
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def load(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **kwargs).eval()


@torch.no_grad()
def logits(model, tokens):
    return model(torch.tensor([tokens])).logits[0]


def distance(a, b):
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def multiply_out(model, path):
    """Puts A B in place of the experts of the source's class, in f32."""
    factors = {}
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                if ".latent_experts." in name:
                    factors[name] = tensors.get_tensor(name).float()
    config = json.loads((Path(path) / "config.json").read_text())
    for layer, groups in config["molae"]["groups"].items():
        moe = next(child for child in model.model.layers[int(layer)].children() if hasattr(child, "experts"))
        half = moe.experts.gate_up_proj.shape[1] // 2
        for g, members in enumerate(groups):
            prefix = next(n for n in factors if f".layers.{layer}." in n).split(".latent_experts.")[0]
            get = lambda factor: factors.get(f"{prefix}.latent_experts.{g}.{factor}")
            shared = get("gate_up_b")
            for i, expert in enumerate(members):
                for operator, rows in (("gate", slice(0, half)), ("up", slice(half, None))):
                    if operator in config["molae"]["operators"]:
                        basis = shared if shared is not None else get(f"{operator}_b")
                        moe.experts.gate_up_proj[expert, rows] = get(f"{operator}_a")[i] @ basis
                if "down" in config["molae"]["operators"]:
                    moe.experts.down_proj[expert] = get("down_b") @ get("down_a")[i]


def compare(job):
    original = load(job["original"])
    before = logits(original, job["tokens"])
    latent = logits(load(job["latent"], trust_remote_code=True), job["tokens"])
    dense = logits(load(job["dense"]), job["tokens"])
    multiply_out(original, job["latent"])
    products = logits(original, job["tokens"])
    return {
        "latent_dense": distance(latent, products),
        "dense_products": distance(dense, products),
        "change": distance(products, before),
        "latent_logits": latent[-1].tolist(),
    }


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({job["name"]: compare(job) for job in jobs}))

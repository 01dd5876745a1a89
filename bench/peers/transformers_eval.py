"""Perplexity of a checkpoint by PyTorch and transformers on the CPU, by molae's protocol: the peer of `molae eval`.

    python transformers_eval.py <checkpoint> <tokens.safetensors> <name> [threads]

Prints one JSON object: perplexity, tokens, seconds (the median of three passes after a first one), versions.
"""

import json
import sys
import time

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

WINDOW = 256
BATCH = 16  # windows that go together, as in molae


@torch.no_grad()
def evaluate(model, ids):
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    loss, tokens = 0.0, 0
    for batch in windows.split(BATCH):
        logits = model(batch).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1), reduction="none")
        loss += losses.double().sum().item()
        tokens += losses.numel()
    return torch.tensor(loss / tokens).exp().item(), tokens


def main(checkpoint, token_file, name, threads="2"):
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = load_file(token_file)[name]
    evaluate(model, ids)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        perplexity, tokens = evaluate(model, ids)
        seconds.append(time.perf_counter() - start)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"perplexity": perplexity, "tokens": tokens, "seconds": sorted(seconds)[1], "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])

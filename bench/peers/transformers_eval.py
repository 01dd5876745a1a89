"""Perplexity of a checkpoint by PyTorch and transformers on the CPU, by molae's protocol: the peer of `molae eval`.

    python transformers_eval.py <checkpoint> <tokens.safetensors> <name> <windows> <threads>

Prints one line of JSON after a first pass: perplexity, tokens, version. Then makes one more pass for every line on standard
input and prints its milliseconds.
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
def evaluate(model, windows):
    loss, tokens = 0.0, 0
    for batch in windows.split(BATCH):
        logits = model(batch).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1), reduction="none")
        loss += losses.double().sum().item()
        tokens += losses.numel()
    return torch.tensor(loss / tokens, dtype=torch.float64).exp().item(), tokens


def main(checkpoint, token_file, name, windows, threads):
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = load_file(token_file)[name][: int(windows) * WINDOW].view(-1, WINDOW)
    perplexity, tokens = evaluate(model, ids)
    version = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(json.dumps({"perplexity": perplexity, "tokens": tokens, "version": version}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        evaluate(model, ids)
        print(json.dumps({"ms": 1e3 * (time.perf_counter() - start)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

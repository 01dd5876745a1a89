#!/usr/bin/env python3
"""Layers of experts and factorization by others, on the card that molae ran on: see README.md.

    run.py RESULT.json [--molae-bench EXECUTABLE | --molae-json FILE...] [--quick | --smoke] [--device cuda|cpu]
"""

import argparse
import datetime
import json
import sys

import torch

import cells
import factorization
import molae
import peers
import timing
from layer import Batch, Layer, check


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result")
    parser.add_argument("--molae-bench", help="molae_device_bench, to be run on this card")
    parser.add_argument("--molae-json", nargs="+", default=[], help="what it has printed on this card")
    parser.add_argument("--quick", action="store_true", help="fewer tokens, shorter")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: whether it works at all")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: for tests, with --smoke")
    return parser.parse_args()


def timed(work, capturable, device, calls, seconds):
    """Statistics of one of the calls that `work` makes, and the graph's results where it could be captured."""
    graph, results = timing.capture(work) if capturable and device.type == "cuda" else (None, None)
    samples = timing.sample(graph.replay if graph else work, device, calls, seconds)
    return {**timing.statistics(samples), "graph": graph is not None}, graph, results


def time_peer(made, layers, batch, seconds):
    """`made`: one of the peer for each layer. They take turns, so that no cache has the weights of the next one."""
    work = lambda: [peer(batch) for peer in made]
    error = max(check(layer, batch, y) for layer, y in zip(layers, work()))
    times, graph, results = timed(work, made[0].capturable, batch.x.device, len(made), seconds)
    if graph:
        # What was timed: its own outputs, poisoned, of other values than it was captured with.
        batch.refill()
        for y in results:
            y.fill_(float("nan"))
        graph.replay()
        error = max(error, *(check(layer, batch, y) for layer, y in zip(layers, results)))
    return {**times, "relativeError": error}


def time_triton(layers, batch, seconds):
    """By the fastest of its tiles, each of them timed a little."""
    from triton_moe import TritonExperts, tiles_for

    def median(tile):
        made = [TritonExperts(layer, tile) for layer in layers]
        work = lambda: [peer(batch) for peer in made]
        work()  # compiles
        return timed(work, True, batch.x.device, len(made), seconds / 10)[0]["medianMs"]

    tile = min(tiles_for(batch.ids.numel() // layers[0].cell.experts), key=median)
    made = [TritonExperts(layer, tile) for layer in layers]
    return {**time_peer(made, layers, batch, seconds), "tile": vars(tile)}


def time_dense(layers, batch, seconds):
    made = [peers.DenseProduct(layer) for layer in layers]
    rows = made[0].rows(batch)
    work = lambda: [peer.product(rows) for peer in made]
    error = max(peer.check(rows, out) for peer, out in zip(made, work()))
    return {**timed(work, True, rows.device, len(made), seconds)[0], "relativeError": error}


def attempt(row, time):
    """A row with its times, or with why it has none: a peer that is missing or wrong takes no other result with it."""
    try:
        row.update(time())
        if "flops" in row:
            row["gflops"] = row["flops"] / row["medianMs"] / 1e6
    except Exception as error:
        row["absent"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    shown = f"{row['medianMs']:.4f} ms" if "medianMs" in row else row["absent"]
    print(f"{row.get('model', row['what'])}, {row.get('tokens', '')} tokens, {row['peer']}: {shown}", file=sys.stderr)
    return row


@torch.no_grad()
def layer_rows(cell, tokens, device, dtype, seconds):
    generator = torch.Generator(device).manual_seed(1)
    count = timing.layers_to_rotate(cell.touched_bytes(tokens), cell.bytes(), device)
    layers = [Layer(cell, dtype, device, generator) for _ in range(count)]
    batch = Batch(cell, tokens, dtype, device, generator)
    ways = {kind.name: of_kind(kind) for kind in (peers.GroupedMm, peers.ExpertLoop, peers.TransformersExperts)}
    ways |= {"triton fused": time_triton, "cublas dense": time_dense}
    base = {"what": "layer", "model": cell.model, "tokens": tokens, "layers": count, "flops": cell.flops(tokens)}
    base |= {"dtype": str(dtype).removeprefix("torch."), "clock": "events" if device.type == "cuda" else "host"}
    return [attempt({**base, "peer": name}, lambda: way(layers, batch, seconds)) for name, way in ways.items()]


def of_kind(kind):
    return lambda layers, batch, seconds: time_peer([kind(layer) for layer in layers], layers, batch, seconds)


@torch.no_grad()
def factorization_rows(device, dtype, sizes, seconds):
    shape = (sizes["experts"], sizes["rows"], sizes["columns"])
    experts = torch.randn(shape, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(2))
    rows = []
    for name, solver in factorization.PEERS.items():

        def time(solver=solver):
            work = lambda: factorization.factorize(solver, experts, sizes["rank"])
            excess = factorization.check(experts, *work(), sizes["rank"])
            return {**timing.statistics(timing.sample(work, device, 1, seconds, least=3)), "excessError": excess}

        rows.append(attempt({"what": "factorization", "peer": name}, time))
    return rows


def ratios(rows):
    """Of each shape, every peer's time over that of our fastest dense layer."""
    shapes = {}
    for row in rows:
        if row["what"] == "layer" and "medianMs" in row:
            shapes.setdefault((row["model"], row["tokens"]), []).append(row)
    table = []
    for (model, tokens), of_shape in shapes.items():
        ours = [row for row in of_shape if row["peer"].startswith("molae dense")]
        if not ours:
            continue
        best = min(ours, key=lambda row: row["medianMs"])
        others = {row["peer"]: row["medianMs"] / best["medianMs"] for row in of_shape if row not in ours}
        table.append({"model": model, "tokens": tokens, "ours": best["peer"], "timesOurs": others})
    return table


def machine(device):
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "transformers"):
        try:
            facts[name] = __import__(name).__version__
        except ImportError:
            facts[name] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
    return facts


def molae_rows(options, facts):
    rows = []
    if options.molae_bench:
        rows += molae.run(options.molae_bench, options.device, facts.get("capability") == "9.0", options.smoke)
    for path in options.molae_json:
        rows += molae.read(path)
    return rows


def save(options, facts, rows):
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    report = {"date": date, "machine": facts, "quick": options.quick or options.smoke, "rows": rows, "ratios": ratios(rows)}
    with open(options.result, "w") as file:
        json.dump(report, file, indent=1)
        file.write("\n")


def main():
    options = parse()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("run.py: torch finds no GPU")
    # What the CPU's torch and Triton's interpreter multiply; figures are of bf16.
    dtype = torch.float32 if options.smoke else torch.bfloat16
    seconds = 0.02 if options.smoke else 0.2 if options.quick else 0.5
    tokens = cells.SMOKE_TOKENS if options.smoke else cells.QUICK_TOKENS if options.quick else cells.TOKENS
    facts = machine(device)
    rows = molae_rows(options, facts)
    save(options, facts, rows)
    for cell in cells.SMOKE_CELLS if options.smoke else cells.CELLS:
        for count in tokens:
            rows += layer_rows(cell, count, device, dtype, seconds)
        save(options, facts, rows)  # of a run that is cut short, what there is
    # Last, as others' SVD of a large stack may take minutes.
    sizes = factorization.SMOKE_SIZES if options.smoke else factorization.SIZES
    rows += factorization_rows(device, dtype, sizes, seconds)
    save(options, facts, rows)


if __name__ == "__main__":
    main()

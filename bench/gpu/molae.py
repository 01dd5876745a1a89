"""Our own rows: from molae_device_bench (test/cuda/device_bench.cc), run here or read from what it printed."""

import json
import subprocess


def run(executable, device, hopper, smoke):
    """All that it times of layers, each way of launching in a process of its own."""
    ways = [["--tiles", "mma"], ["--tiles", "mma", "--launch", "graph"]]
    if hopper:
        ways += [["--tiles", "hopper"], ["--tiles", "hopper", "--launch", "graph"]]
    rows = []
    for way in ways:
        command = [executable, "--device", device, "--cells", "all", *way, *(["--smoke"] if smoke else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        own = rows_of(done.stdout)
        rows += own
        if done.returncode != 0 or not own:
            rows.append({"what": "layer", "peer": "molae " + " ".join(way), "absent": done.stderr.strip()[-300:]})
    return rows


def read(path):
    try:
        with open(path) as file:
            rows = rows_of(file.read())
        reason = "no rows"
    except OSError as error:
        rows, reason = [], str(error)
    return rows or [{"what": "layer", "peer": f"molae, {path}", "absent": reason}]


def rows_of(printed):
    """Rows are printed one by one: those before a bench was cut off stand."""
    for whole in (printed, printed[: printed.rfind("}") + 1] + "]}"):
        try:
            return [row for row in map(_row, json.loads(whole)["results"]) if row]
        except ValueError:
            pass
    return []


def _row(result):
    kind, _, cell = result["name"].partition(" ")
    timed = {"medianMs": result["medianMs"], "clock": "host"}
    how = f"{result['tiles'] or 'default'} tiles, {result['launch']}"
    if kind == "factorization":
        return {"what": "factorization", "peer": f"molae {cell}", **timed}
    if kind not in ("dense", "latent") or not cell.partition(" ")[2].startswith("k"):
        return None  # a ceiling
    # "qwen1.5-moe k15 r704": the model, and the latent layer's group and rank
    model, _, latent = cell.partition(" ")
    peer = f"molae {kind}" + (f" {latent}" if kind == "latent" else "")
    row = {"what": "layer", "model": model, "tokens": result["tokens"], "peer": f"{peer}, {how}"}
    return {**row, **timed, "gflops": result["gflops"]}

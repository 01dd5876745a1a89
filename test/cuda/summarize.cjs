// The logs of scripts/gpu-check.sh as one JSON file: summarize.cjs LOGS RESULT. Exit 1 where a step failed; peers, torch and
// whether the sanitizer takes the device are no steps of ours. A step that there was no time for, or too little for a
// sanitizer, has not failed: it is in `skipped`.
const fs = require('node:fs');
const path = require('node:path');

const [logs, result] = process.argv.slice(2);
const text = (name) => {
  const file = path.join(logs, name);
  return fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
};
const tail = (value) => value.trim().split('\n').slice(-25);

const isSanitizer = (name) => /^(memcheck|racecheck|initcheck)/.test(name);
const isOurs = (name) => !['peers', 'torch', 'sanitizer'].includes(name);

const steps = {};
const skipped = [];
for (const file of fs.readdirSync(logs).filter((name) => name.endsWith('.status'))) {
  const name = path.basename(file, '.status');
  const [word, seconds] = text(file).trim().split(' ');
  if (word === 'skipped') {
    skipped.push(name);
    continue;
  }
  const status = word === 'cut' ? word : Number(word); // cut: whoever ran the script ended it
  steps[name] = { ok: status === 0, status, seconds: Number(seconds) };
  if (status !== 0) steps[name].output = tail(`${text(`${name}.log`)}\n${text(`${name}.err`)}`);
}

const parityLogs = fs
  .readdirSync(logs)
  .filter((name) => /^parity_.*\.log$/.test(name))
  .map(text);
const parityLines = parityLogs.join('\n').split('\n');
const counts = parityLogs.flatMap((log) => {
  const found = /(\d+) passed, (\d+) failed on cuda \(--seed (\d+)\)/.exec(log);
  return found ? [{ passed: Number(found[1]), failed: Number(found[2]), seed: found[3] }] : [];
});
const total = (name) => counts.reduce((sum, count) => sum + count[name], 0);
const readBench = (name) => {
  if (!steps[name]) return null;
  const written = text(`${name}.log`);
  // Rows come one by one: what was written before a bench was cut off stands.
  for (const whole of [written, `${written.slice(0, written.lastIndexOf('}') + 1)}\n]}`]) {
    try {
      return JSON.parse(whole);
    } catch {}
  }
  Object.assign(steps[name], { ok: false, output: ['no rows', ...tail(text(`${name}.err`))] });
  return null;
};
const bench = readBench('bench');
const benchHopper = readBench('bench_hopper');
const benchSmall = readBench('bench_small');
const benchGraph = readBench('bench_graph');
const benchHopperGraph = readBench('bench_hopper_graph');
const readPeers = () => {
  try {
    return JSON.parse(text('peers.json'));
  } catch {
    return null; // there is no torch, or it was cut short before its first row
  }
};
const peers = readPeers();

// Both families of tiles side by side, and what share of cuBLAS's dense rate the better one has. The tests "tiles: …" say
// whether each of them is right: only then is the default in native/cuda/config/tile_choice.h to become the faster one.
const tileTests = parityLines.filter((line) => /^(ok|FAILED|skipped)\s+tiles: /.test(line));
const rows = [...(bench?.results ?? []), ...(benchHopper?.results ?? [])];
const cublas = rows.find(({ name, dtype }) => name.startsWith('dense product') && dtype === 'bf16')?.gflops;
const tiles = rows
  .filter((row) => row.tiles === 'mma' && /^(dense|latent) .* k\d/.test(row.name))
  .map((mma) => {
    const hopper = rows.find(
      (row) => row.tiles === 'hopper' && row.name === mma.name && row.tokens === mma.tokens,
    );
    const gflops = Math.max(mma.gflops, hopper?.gflops ?? 0);
    return {
      name: mma.name,
      tokens: mma.tokens,
      mmaMs: mma.medianMs,
      hopperMs: hopper?.medianMs ?? null,
      ofCublas: cublas ? Number((gflops / cublas).toFixed(3)) : null,
    };
  });

// Few tokens: by the streaming kernel, which is what 4 and fewer take, by the tile that they took before it, and as a graph.
// Bytes are those of the weights that the routing touched; a copy reads and writes.
const copy = rows.find(({ name }) => name === 'device copy')?.gbps;
const graphTests = parityLines.filter((line) => /^(ok|FAILED|skipped)\s+graphs: /.test(line));
const decode = (bench?.results ?? [])
  .filter((row) => row.tokens >= 1 && row.tokens <= 16)
  .map((plain) => {
    const same = (other) =>
      other?.results.find((row) => row.name === plain.name && row.tokens === plain.tokens) ?? null;
    const best = Math.max(plain.gbps, same(benchGraph)?.gbps ?? 0);
    return {
      name: plain.name,
      tokens: plain.tokens,
      plainMs: plain.medianMs,
      smallMs: same(benchSmall)?.medianMs ?? null,
      graphMs: same(benchGraph)?.medianMs ?? null,
      hopperGraphMs: same(benchHopperGraph)?.medianMs ?? null,
      ofCopy: copy ? Number((best / copy).toFixed(3)) : null,
    };
  });

const report = {
  date: new Date().toISOString(),
  gpu: text('gpu.log').trim(),
  ok: Object.entries(steps).every(([name, step]) => step.ok || !isOurs(name)),
  steps,
  skipped,
  sanitizer: Object.keys(steps).some(isSanitizer)
    ? 'ran'
    : steps.sanitizer?.ok === false
      ? 'did not run: it refused the device, took too long, or failed on the first test'
      : 'did not run: not found, not asked for, or no time',
  parity:
    counts.length === 0
      ? null
      : {
          passed: total('passed'),
          failed: total('failed'),
          seeds: [...new Set(counts.filter(({ failed }) => failed > 0).map(({ seed }) => seed))], // of what failed
          failures: parityLines.filter((line) => line.startsWith('FAILED')),
        },
  tiles: { tests: tileTests, rows: tiles },
  graphs: { tests: graphTests },
  decode,
  bench,
  benchHopper,
  benchSmall,
  benchGraph,
  benchHopperGraph,
  peers,
};
fs.writeFileSync(result, `${JSON.stringify(report, null, 2)}\n`);
for (const line of tileTests) console.log(line);
for (const row of tiles) {
  const hopper = row.hopperMs === null ? 'none' : `${row.hopperMs.toFixed(3)} ms`;
  const share = row.ofCublas === null ? '' : `, ${(100 * row.ofCublas).toFixed(1)}% of cuBLAS dense`;
  console.log(`${row.name}, ${row.tokens} tokens: mma ${row.mmaMs.toFixed(3)} ms, hopper ${hopper}${share}`);
}
for (const line of graphTests) console.log(line);
const shown = (ms) => (ms === null ? 'none' : `${ms.toFixed(4)} ms`);
for (const row of decode) {
  const share = row.ofCopy === null ? '' : `, ${(100 * row.ofCopy).toFixed(1)}% of copy bandwidth`;
  console.log(
    `${row.name}, ${row.tokens} tokens: plain ${shown(row.plainMs)}, small tile ${shown(row.smallMs)}, graph ${shown(row.graphMs)}${share}`,
  );
}
for (const { model, tokens, ours, timesOurs } of peers?.ratios ?? []) {
  const others = Object.entries(timesOurs).map(([peer, times]) => `${peer} ${times.toFixed(2)}`);
  console.log(`${model}, ${tokens} tokens, times of ${ours}: ${others.join(', ')}`);
}
if (skipped.length > 0) console.log(`gpu-check: no time for ${skipped.join(', ')}`);
console.log(`gpu-check: ${report.ok ? 'passed' : 'FAILED'}, see ${result}`);
process.exitCode = report.ok ? 0 : 1;

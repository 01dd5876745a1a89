// The logs of scripts/gpu-check.sh as one JSON file: summarize.cjs LOGS RESULT. Exit 1 where a step failed.
const fs = require('node:fs');
const path = require('node:path');

const [logs, result] = process.argv.slice(2);
const text = (name) => {
  const file = path.join(logs, name);
  return fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
};
const tail = (value) => value.trim().split('\n').slice(-25);

const steps = {};
for (const file of fs.readdirSync(logs).filter((name) => name.endsWith('.status'))) {
  const name = path.basename(file, '.status');
  const [status, seconds] = text(file).trim().split(' ').map(Number);
  steps[name] = { ok: status === 0, status, seconds };
  if (status !== 0) steps[name].output = tail(`${text(`${name}.log`)}\n${text(`${name}.err`)}`);
}

const parity = text('parity.log');
const counts = /(\d+) passed, (\d+) failed on cuda \(--seed (\d+)\)/.exec(parity);
let bench = null;
try {
  bench = JSON.parse(text('bench.log'));
} catch (error) {
  if (steps.bench) steps.bench.output = [String(error), ...tail(text('bench.err'))];
}

const report = {
  date: new Date().toISOString(),
  gpu: text('gpu.log').trim(),
  ok: Object.values(steps).every((step) => step.ok),
  steps,
  sanitizer: steps.memcheck ? 'ran' : 'compute-sanitizer was not found',
  parity: counts && {
    passed: Number(counts[1]),
    failed: Number(counts[2]),
    seed: counts[3],
    failures: parity.split('\n').filter((line) => line.startsWith('FAILED')),
  },
  bench,
};
fs.writeFileSync(result, `${JSON.stringify(report, null, 2)}\n`);
console.log(`gpu-check: ${report.ok ? 'passed' : 'FAILED'}, see ${result}`);
process.exitCode = report.ok ? 0 : 1;

// Calls the public functions on tensors with hostile arguments: wrong types, sizes, dtypes and devices, detached, shared
// and shrunk buffers, disposed objects, proxies, throwing getters, and things pulled away in mid-call. Every call must
// succeed or throw a MolaeError that names a cause, within seconds, and leave no memory behind. Needs the built package.
//
//   npm run fuzz:api -- [--calls 100000] [--seed 1] [--package dist]
//
// The calls run in a process of their own, since a crash is what this looks for. Prints one JSON object; exits with 1
// after the first finding, which becomes a mend and a test.

import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const { values: options } = parseArgs({
  options: {
    calls: { type: 'string', default: '100000' },
    seed: { type: 'string', default: String(Date.now() % 1e6) },
    package: { type: 'string', default: here('../../dist') },
  },
});

/** Without a new call in the journal for this long the process hangs. */
const HANG_MS = 60_000;

const scratch = await mkdtemp(join(tmpdir(), 'molae-fuzz-api-'));
const journal = join(scratch, 'journal');
const lastCall = () => readFile(journal, 'utf8').catch(() => '');
try {
  const args = [here('api/child.mjs'), options.package, options.calls, options.seed, journal];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let written = '';
  let complaint = '';
  child.stdout.on('data', (text) => {
    written += text;
  });
  child.stderr.on('data', (text) => {
    complaint += text;
  });
  let hangs = false;
  let seen = '';
  const watch = setInterval(async () => {
    const call = await lastCall();
    if (call === seen) hangs = child.kill('SIGKILL');
    seen = call;
  }, HANG_MS);
  const [status, signal] = await new Promise((resolve) => {
    child.on('close', (...end) => resolve(end));
  });
  clearInterval(watch);
  let report;
  try {
    report = JSON.parse(written);
  } catch {
    const problem = hangs ? 'hangs' : `ended with ${signal ?? status}: ${complaint.slice(-2000)}`;
    report = { finding: { problem, lastCall: await lastCall() } };
  }
  console.log(JSON.stringify({ seed: Number(options.seed), ...report }));
  process.exitCode = report.finding ? 1 : 0;
} finally {
  await rm(scratch, { recursive: true, force: true });
}

// Kills conversions outright at random points, lets the next run complete, and holds the result byte by byte against an
// undisturbed one. Needs the built package.
//
//   node test/endurance/kill.mjs [--points 50] [--seed 1] [--source folder] [--package dist]
//
// A point is one operation on the file system (see kill-at.mjs); every fifth run is killed twice in a row, and every third
// replaces a checkpoint, of which there must be one at any time. Prints one JSON object, and exits with 1 where a result
// differs.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cp, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const { values } = parseArgs({
  options: {
    points: { type: 'string', default: '50' },
    seed: { type: 'string', default: '1' },
    source: { type: 'string', default: here('../fixtures/families/deepseek_v3') },
    package: { type: 'string', default: here('../../dist') },
  },
});
let state = Number(values.seed) >>> 0;

/** An integer from 1 to `most`. */
function random(most) {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return 1 + Math.floor((state / 2 ** 32) * most);
}

const folder = await mkdtemp(join(tmpdir(), 'molae-kill-'));

function convert(output, killAt, force = false) {
  const script = `
    import { convertCheckpoint } from ${JSON.stringify(resolve(values.package, 'index.js'))};
    const report = await convertCheckpoint(${JSON.stringify(values.source)}, ${JSON.stringify(output)},
      { groupSize: 4, latentSize: 16, force: ${force} });
    console.log(report.resumedFiles);`;
  const env = { ...process.env, MOLAE_KILL_AT: String(killAt), MOLAE_COUNT_TO: join(folder, 'count') };
  const child = spawn(
    process.execPath,
    ['--import', here('./kill-at.mjs'), '--input-type=module', '-e', script],
    { env, stdio: ['ignore', 'pipe', 'pipe'] },
  );
  let text = '';
  child.stdout.on('data', (chunk) => {
    text += chunk;
  });
  let complaint = '';
  child.stderr.on('data', (chunk) => {
    complaint += chunk;
  });
  return new Promise((resolve) =>
    child.on('close', (code, signal) => resolve({ code, signal, text, complaint })),
  );
}

/** Every file with the hash of its bytes. */
async function contents(path) {
  const names = (await readdir(path)).sort();
  const hash = async (name) =>
    createHash('sha256')
      .update(await readFile(join(path, name)))
      .digest('hex');
  return JSON.stringify(await Promise.all(names.map(async (name) => [name, await hash(name)])));
}

async function isOneOf(wanted, path) {
  return wanted.includes(await contents(path).catch(String));
}

const failures = [];
let resumed = 0;
let total = 0;
try {
  const before = await contents(values.source);
  const undisturbed = join(folder, 'undisturbed');
  const { code, complaint } = await convert(undisturbed, 0);
  if (code !== 0) throw new Error(`the undisturbed conversion failed: ${complaint}`);
  total = Number(await readFile(join(folder, 'count'), 'utf8'));
  const wanted = await contents(undisturbed);
  for (let point = 0; point < Number(values.points); point++) {
    const output = join(folder, `out-${point}`);
    const replaced = join(folder, `.out-${point}.molae-partial-replaced`);
    const force = point % 3 === 2;
    if (force) await cp(values.source, output, { recursive: true });
    const killed = [];
    for (let time = 0; time < (point % 5 === 4 ? 2 : 1); time++) {
      // Near the end, where files move into place, as often as everywhere else together.
      const at = random(2) === 1 ? random(total) : total + 1 - random(Math.min(12, total));
      killed.push(at);
      const { signal } = await convert(output, at, force);
      if (force && !(await isOneOf([before, wanted], output)) && !(await isOneOf([before], replaced)))
        failures.push(`${killed}: neither the old checkpoint nor the new one is there`);
      // A resumed run has less to do, and may be done before the second point.
      if (signal !== 'SIGKILL' && time === 0) failures.push(`${killed}: was not killed (${signal})`);
    }
    // Killed as the very last thing, the output is there.
    const isThere = (await readdir(folder)).includes(`out-${point}`);
    if (force || !isThere) {
      const last = await convert(output, 1e9, force);
      const left = (await readdir(folder)).filter((name) => name.startsWith(`.out-${point}.`));
      if (left.length > 0) failures.push(`${killed}: ${left} is left over`);
      if (last.code !== 0) failures.push(`${killed}: the next run failed: ${last.complaint}`);
      resumed += Number(last.text);
    }
    const got = await contents(output).catch(String);
    if (got !== wanted) failures.push(`${killed}: ${got} in place of ${wanted}`);
    await rm(output, { recursive: true, force: true });
  }
  if ((await contents(values.source)) !== before) failures.push('the source changed');
} finally {
  await rm(folder, { recursive: true, force: true });
}
console.log(
  JSON.stringify({ points: Number(values.points), operations: total, resumedFiles: resumed, failures }),
);
process.exitCode = failures.length > 0 ? 1 : 0;

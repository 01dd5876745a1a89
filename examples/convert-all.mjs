// Converts every checkpoint in a folder:
//
//   node examples/convert-all.mjs <folder> <output folder> --target-ratio 0.3
//
// One that fails does not stop the others, one that is there already is left alone, and after Ctrl-C the same command goes
// on where it was. Exits with 1 if any failed.

import { readdir, realpath, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { convertCheckpoint, MolaeError, openDevice } from 'molae';

const USAGE =
  'usage: node examples/convert-all.mjs <folder> <output folder> [--target-ratio 0.3] [--device auto]';
const { from, to, targetRatio, deviceName } = readArguments();

const names = await checkpoints().catch((error) => stop(`Cannot read ${from}: ${error.code}`, 1));
if (names.length === 0) stop(`There are no folders in ${from}: give the one that the checkpoints are in`, 1);
const device = await openDevice(deviceName).catch((error) => {
  if (!(error instanceof MolaeError)) throw error;
  stop(error.message, 1);
});
const controller = new AbortController();
process.once('SIGINT', () => controller.abort());

const rows = [];
for (const name of names) {
  if (controller.signal.aborted) break;
  rows.push(await convert(name));
}
device.dispose();
console.table(rows);
process.exitCode = rows.some(({ result }) => result === 'failed') ? 1 : controller.signal.aborted ? 130 : 0;

/** Names of the folders that may be checkpoints: files beside them are not, nor is what is hidden, nor the output. */
async function checkpoints() {
  const entries = (await readdir(from)).filter((name) => !name.startsWith('.')).sort();
  const output = await realpath(to).catch(() => undefined);
  const kept = [];
  for (const name of entries) {
    const path = join(from, name);
    const isFolder = await stat(path).then(
      (stats) => stats.isDirectory(),
      () => false,
    );
    if (isFolder && (await realpath(path)) !== output) kept.push(name);
  }
  return kept;
}

async function convert(name) {
  try {
    const report = await convertCheckpoint(join(from, name), join(to, name), {
      targetRatio,
      device,
      signal: controller.signal,
      onProgress: ({ done, total }) => {
        if (process.stderr.isTTY) process.stderr.write(`\r${name}: ${Math.floor((100 * done) / total)} %`);
      },
    });
    const { before, after } = report.expertParameters;
    const errors = report.layers.map(({ relativeError }) => relativeError);
    return {
      name,
      result: 'converted',
      expertParameters: `${(after / before).toFixed(2)}×`,
      worstError: Math.max(...errors).toFixed(3),
      seconds: report.seconds.toFixed(1),
    };
  } catch (error) {
    if (!(error instanceof MolaeError)) throw error;
    if (error.code === 'OUTPUT_EXISTS') return { name, result: 'there already' };
    if (error.code === 'ABORTED') return { name, result: 'stopped' };
    console.error(`${name}: ${error.message}`);
    return { name, result: 'failed', code: error.code };
  }
}

function readArguments() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        'target-ratio': { type: 'string', default: '0.3' },
        device: { type: 'string', default: 'auto' },
      },
    });
    const [from, to, ...others] = positionals;
    if (to === undefined || others.length > 0) throw new Error('Expected two folders');
    const targetRatio = Number(values['target-ratio']);
    if (!(targetRatio > 0 && targetRatio < 1))
      throw new Error(
        `Expected a number between 0 and 1 for --target-ratio but received ${values['target-ratio']}`,
      );
    return { from, to, targetRatio, deviceName: values.device };
  } catch (error) {
    return stop(`${error.message}\n${USAGE}`, 2);
  }
}

function stop(message, status) {
  console.error(message);
  process.exit(status);
}

// Converts every checkpoint in a folder:
//
//   node examples/convert-all.mjs <folder> <output folder> --target-ratio 0.3
//
// One that fails does not stop the others, one that is there already is left alone, and after Ctrl-C the same command goes
// on where it was. Exits with 1 if any failed.

import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { convertCheckpoint, MolaeError, openDevice } from 'molae';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    'target-ratio': { type: 'string', default: '0.3' },
    device: { type: 'string', default: 'auto' },
  },
});
const [from, to] = positionals;
if (from === undefined || to === undefined) {
  console.error(
    'usage: node examples/convert-all.mjs <folder> <output folder> [--target-ratio 0.3] [--device auto]',
  );
  process.exit(2);
}

const device = await openDevice(options.device);
const controller = new AbortController();
process.once('SIGINT', () => controller.abort());
await mkdir(to, { recursive: true });

const rows = [];
for (const name of (await readdir(from)).sort()) {
  if (controller.signal.aborted) break;
  rows.push(await convert(name));
}
device.dispose();
console.table(rows);
process.exitCode = rows.some(({ result }) => result === 'failed') ? 1 : controller.signal.aborted ? 130 : 0;

async function convert(name) {
  try {
    const report = await convertCheckpoint(join(from, name), join(to, name), {
      targetRatio: Number(options['target-ratio']),
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

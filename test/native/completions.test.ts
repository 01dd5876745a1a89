import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { deadline } from '../support/deadline.ts';

const addon = join(fileURLToPath(new URL('../..', import.meta.url)), 'build/Release/molae.node');

/** Twelve results that are objects wait for a busy JavaScript thread; the `then` of the first queues 20000 calls. */
const reentrant = `
  const native = require(${JSON.stringify(addon)});
  const device = native.openDevice('cpu', 0, 2);
  const bases = Array.from({ length: 12 }, () => {
    const basis = device.sharedBasis({ side: 'input', sharedSize: 16, solver: 'gram', rankReduction: 0 });
    basis.add(device.fromData('f32', [8, 16], new Float32Array(128).map((_, i) => Math.sin(i * i))));
    return basis;
  });
  let more = [];
  Object.defineProperty(Object.prototype, 'then', {
    configurable: true,
    get() {
      if (more.length > 0 || !Object.hasOwn(this, 'tolerance')) return undefined;
      more = Array.from({ length: 20000 }, () => device.timestamp());
    },
  });
  const solved = bases.map((basis) => basis.solve(device.empty('f32', [4, 16])));
  for (const end = Date.now() + 500; Date.now() < end; );
  Promise.all(solved).then(async (reports) => {
    delete Object.prototype.then;
    console.log(reports.length, (await Promise.all(more)).length);
  });
`;

test('results may queue more work while they are handed out', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['-e', reentrant], {
    timeout: deadline(60),
  });
  expect(stdout).toBe('12 20000\n');
});

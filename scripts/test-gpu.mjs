#!/usr/bin/env node
// `npm run test:gpu`: the TypeScript tests of tensors, linear algebra, routing, experts, factorization and whole models on
// a GPU. Without one it says so in one line and succeeds, unless MOLAE_REQUIRE_GPU=1.
// `npm run test:gpu -- --on-host` needs none: the CUDA backend's blocks run on the host (test/cuda/on_host), as a build with
// MOLAE_NATIVE_TESTS has them in build/on-host.

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openDevice } from '../dist/index.js';

const onHost = fileURLToPath(new URL('../build/on-host', import.meta.url));
if (process.argv.includes('--on-host')) {
  if (!existsSync(onHost)) throw new Error(`There is no ${onHost}: build with -DMOLAE_NATIVE_TESTS=ON`);
  process.env.MOLAE_PREBUILD = onHost; // where node-gyp-build looks instead
}

const tests = [
  ...['tensor', 'linalg', 'routing', 'experts', 'factorize', 'golden'],
  ...['model/operations', 'model/golden', 'model/families', 'model/model'],
].map((name) => `test/${name}.test.ts`);

try {
  (await openDevice('cuda')).dispose();
} catch (error) {
  const required = process.env.MOLAE_REQUIRE_GPU === '1';
  console.log(`${required ? 'FAILED' : 'skipped'}: ${error.message.split('\n')[0]}`);
  process.exit(required ? 1 : 0);
}
const packageFile = createRequire(import.meta.url).resolve('vitest/package.json');
const vitest = join(dirname(packageFile), 'vitest.mjs');
const { status } = spawnSync(process.execPath, [vitest, 'run', '--testTimeout=600000', ...tests], {
  stdio: 'inherit',
  env: { ...process.env, MOLAE_TEST_DEVICE: 'cuda' },
});
process.exit(status ?? 1);

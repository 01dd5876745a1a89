#!/usr/bin/env node
// `npm run test:gpu`: the TypeScript tests of tensors, linear algebra, routing, experts, factorization and whole models on
// a GPU.
// Without one it says so in one line and succeeds, unless MOLAE_REQUIRE_GPU=1.

import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { openDevice } from '../dist/index.js';

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
const vitest = createRequire(import.meta.url).resolve('vitest/vitest.mjs');
const { status } = spawnSync(process.execPath, [vitest, 'run', ...tests], {
  stdio: 'inherit',
  env: { ...process.env, MOLAE_TEST_DEVICE: 'cuda' },
});
process.exit(status ?? 1);

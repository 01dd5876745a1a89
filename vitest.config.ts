import { defineConfig } from 'vitest/config';
import { deadline } from './test/support/deadline.ts';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['scripts/require-addon.mjs'],
    testTimeout: deadline(60),
    hookTimeout: deadline(60),
    // Two cores: native code is already parallel, so a few files at a time.
    maxWorkers: 2,
  },
});

import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['scripts/require-addon.mjs'],
    testTimeout: 60_000,
    // Two cores: native code is already parallel, so a few files at a time.
    maxWorkers: 2,
  },
});

// vitest's global set-up: one clear message instead of a failure in every test.

import { readdirSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const nodeGypBuild = createRequire(import.meta.url)('node-gyp-build');

export default function requireAddon() {
  let addon;
  try {
    addon = nodeGypBuild.path(root);
  } catch (cause) {
    const error = new Error(
      'The native addon is not built, and the tests need it. Run "npm run build:native".',
      { cause },
    );
    error.stack = ''; // ours and vitest's code: of no interest
    throw error;
  }
  const built = statSync(addon).mtimeMs;
  const sources = readdirSync(join(root, 'native'), { recursive: true }).filter((name) =>
    /\.(cc|h|cu|cuh)$/.test(name),
  );
  const newer = sources.filter((name) => statSync(join(root, 'native', name)).mtimeMs > built);
  if (newer.length > 0) {
    console.warn(
      `${relative(root, addon)} is older than native/${newer[0]}${newer.length > 1 ? ` and ${newer.length - 1} more` : ''}: run "npm run build:native" to test what is written there.`,
    );
  }
}

#!/usr/bin/env node
// `npm run demo`: builds what is missing, converts the small test model, shows what that saved and cost, and says what to try next. Run it as often as
// you like.

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const model = 'test/fixtures/tiny-qwen2-moe';
const text = 'test/fixtures/moby-dick.txt';
const out = 'out/demo';

if (!existsSync(join(root, 'node_modules', 'typescript')))
  fail('Dependencies are missing: run "npm install" first.');
if (!hasAddon()) step('Building the native addon (takes a minute or two)', 'scripts/build-native.mjs');
if (!isCompiled())
  step('Compiling the TypeScript', 'node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json');

molae('plan', model, '--target-ratio', '0.25');
molae('convert', model, out, '--target-ratio', '0.25', '--force');
molae('eval', model, '--compare', out, '--text', text);
for (const checkpoint of [model, out]) {
  molae(
    'generate',
    checkpoint,
    '--prompt',
    'The old man looked at the sea and',
    '--max-tokens',
    '40',
    '--temperature',
    '0.6',
    '--seed',
    '3',
  );
}
console.log(`
What to try next:
  node dist/cli/main.js inspect ${out}
  node dist/cli/main.js plan ${model} --group-size 4 --latent-size 96    # where it gets worse
  node dist/cli/main.js convert --help
and with a model of your own, a folder from Hugging Face: docs/checkpoints.md lists the families.`);

function hasAddon() {
  const prebuilds = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
  return existsSync(join(root, 'build/Release/molae.node')) || existsSync(prebuilds);
}

/** Whether dist/ is there and newer than every source. */
function isCompiled() {
  const main = join(root, 'dist/cli/main.js');
  if (!existsSync(main)) return false;
  const compiled = statSync(main).mtimeMs;
  const sources = readdirSync(join(root, 'lib'), { recursive: true });
  return sources.every((name) => statSync(join(root, 'lib', name)).mtimeMs <= compiled);
}

function molae(...args) {
  console.log(`\n$ molae ${args.map((arg) => (arg.includes(' ') ? `"${arg}"` : arg)).join(' ')}`);
  node('dist/cli/main.js', ...args);
}

function step(title, ...args) {
  console.log(`${title} …`);
  node(...args);
}

/** Runs node on a script of the package; what went wrong it has said itself. */
function node(script, ...args) {
  const { status, signal } = spawnSync(process.execPath, [join(root, script), ...args], {
    cwd: root,
    stdio: 'inherit',
  });
  if (signal) process.kill(process.pid, signal);
  if (status !== 0) fail(`${script} failed; the reason is above.`);
}

function fail(message) {
  console.error(`demo: ${message}`);
  process.exit(1);
}

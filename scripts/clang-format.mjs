// Formats the C++ and CUDA sources with clang-format, or with --check only says which would change. Its major version is
// pinned: other versions format the same style differently.

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const requiredMajor = 14;
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const check = process.argv.includes('--check');

const sources = ['native', 'test/native', 'test/cuda', 'bench', 'cmake']
  .filter((folder) => existsSync(join(root, folder)))
  .flatMap((folder) => readdirSync(join(root, folder), { recursive: true }).map((name) => join(folder, name)))
  .filter((name) => /\.(cc|h|cu|cuh)$/.test(name))
  .sort();

const formatter = findFormatter();
if (sources.length > 0) {
  const mode = check ? ['--dry-run', '--Werror'] : ['-i'];
  const { status, stderr, error } = spawnSync(formatter, ['--style=file', ...mode, ...sources], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (error) throw error;
  if (status !== 0) {
    const places = [...stderr.matchAll(/^(.+?):\d+:\d+: error: code should be clang-formatted/gm)];
    const unformatted = new Map();
    for (const [, file] of places) unformatted.set(file, (unformatted.get(file) ?? 0) + 1);
    if (unformatted.size === 0) console.error(stderr);
    for (const [file, count] of unformatted) console.error(`${file}: ${count} place(s) differ`);
    console.error('Run "npm run format".');
    process.exit(1);
  }
}
console.log(`clang-format ${requiredMajor}: ${sources.length} files ${check ? 'checked' : 'formatted'}`);

function findFormatter() {
  const found = [];
  for (const name of ['clang-format', ...[14, 15, 16, 17, 18, 19].map((major) => `clang-format-${major}`)]) {
    const { stdout } = spawnSync(name, ['--version'], { encoding: 'utf8' });
    const version = /clang-format version (\d+)\S*/.exec(stdout ?? '');
    if (!version) continue;
    if (Number(version[1]) === requiredMajor) return name;
    found.push(`${name} is ${version[0].split(' ').at(-1)}`);
  }
  console.error(
    `clang-format ${requiredMajor} is needed, ${found.length ? found.join(', ') : 'none was found'}.`,
  );
  console.error('Debian 12: apt-get install clang-format. Elsewhere: apt-get install clang-format-14, or');
  console.error(`pip install "clang-format==${requiredMajor}.*".`);
  process.exit(1);
}

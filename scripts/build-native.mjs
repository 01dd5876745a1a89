#!/usr/bin/env node
// Builds the addon with CMake and leaves it, and every library that belongs beside it, in build/Release. All ways lead
// here: `npm run build:native` in a checkout and in an installed package, binding.gyp, and `prebuildify --node-gyp`.
// Needs nothing but CMake, a C++20 compiler, OpenBLAS and the two header packages among our dependencies; downloads
// nothing. Arguments of the form -DNAME=VALUE go to CMake; what prebuildify and node-gyp pass is ignored.
//
// molae has no install script: `npm install` never compiles, so it can't fail for lack of a compiler. Where no
// prebuilt addon fits, the first use says so and names this script.

import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const tree = join(root, 'build', 'cmake'); // not build/ itself: node-gyp keeps its own Makefile there
const linked = join(tree, 'lib');
const release = join(root, 'build', 'Release');
const aptPackages = 'cmake ninja-build g++ libopenblas-pthread-dev';

const definitions = process.argv.slice(2).filter((argument) => argument.startsWith('-D'));

checkTools();
const configured = configure();
if (configured !== 0) fail('CMake could not configure the build: the reason is above.');
const built = run('cmake', [
  '--build',
  tree,
  '--config',
  'Release',
  '--parallel',
  String(availableParallelism()),
]);
if (built !== 0)
  fail('The build failed: the compiler says above why. molae needs C++20: GCC 11, Clang 14 or newer.');
collect();

function checkTools() {
  const missing = [];
  const cmake = versionOf('cmake');
  if (!cmake) missing.push('CMake 3.20 or newer ("cmake" is not in PATH)');
  else if (cmake[0] < 3 || (cmake[0] === 3 && cmake[1] < 20)) {
    missing.push(`CMake 3.20 or newer (this one is ${cmake.join('.')})`);
  }
  const compilers = [process.env.CXX?.split(' ')[0], 'c++', 'g++', 'clang++', 'cl'].filter(Boolean);
  if (!compilers.some(inPath)) missing.push('a C++20 compiler (none of c++, g++ and clang++ is in PATH)');
  const require = createRequire(import.meta.url);
  for (const headers of ['node-addon-api', 'node-api-headers']) {
    try {
      require.resolve(`${headers}/package.json`);
    } catch {
      missing.push(`the package ${headers} (run "npm install" first)`);
    }
  }
  if (missing.length > 0) fail('Missing:', ...missing.map((what) => `  - ${what}`));
}

function configure() {
  const cache = join(tree, 'CMakeCache.txt');
  if (existsSync(cache) && !readFileSync(cache, 'utf8').includes(`CMAKE_HOME_DIRECTORY:INTERNAL=${root}\n`)) {
    rmSync(tree, { recursive: true }); // the folder was moved or copied
  }
  const generator = !existsSync(cache) && inPath('ninja') ? ['-G', 'Ninja'] : [];
  return run('cmake', [
    '-S',
    root,
    '-B',
    tree,
    ...generator,
    '-DCMAKE_BUILD_TYPE=Release',
    `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${linked}`,
    `-DMOLAE_NODE=${process.execPath}`,
    ...definitions,
  ]);
}

// A copy, since prebuildify strips what it finds in build/Release and moves it away; renamed into place, since a running
// process may have the old file mapped.
function collect() {
  const from = existsSync(join(linked, 'Release')) ? join(linked, 'Release') : linked;
  const products = existsSync(from)
    ? readdirSync(from).filter((name) => /\.(node|so|dylib|dll)$/.test(name))
    : [];
  if (!products.includes('molae.node')) fail('CMake made no molae.node: the reason is above.');
  mkdirSync(release, { recursive: true });
  for (const name of readdirSync(release)) {
    if (/\.(node|so|dylib|dll)$/.test(name) && !products.includes(name)) rmSync(join(release, name));
  }
  for (const name of products) {
    const temporary = join(release, `.${name}.${process.pid}`);
    copyFileSync(join(from, name), temporary);
    renameSync(temporary, join(release, name));
  }
  console.log(`molae: ${products.map((name) => join('build', 'Release', name)).join(', ')}`);
}

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error) fail(`Cannot run ${command}: ${error.message}`);
  return status ?? 1;
}

function versionOf(command) {
  const { stdout } = spawnSync(command, ['--version'], { encoding: 'utf8' });
  return /(\d+)\.(\d+)(?:\.(\d+))?/
    .exec(stdout ?? '')
    ?.slice(1)
    .map(Number);
}

function inPath(command) {
  const endings = process.platform === 'win32' ? ['.exe', '.cmd', ''] : [''];
  const folders = ['', ...(process.env.PATH ?? '').split(delimiter).filter(Boolean)];
  return folders.some((folder) =>
    endings.some((ending) => {
      const isPath = command.includes('/') || command.includes('\\');
      return isPath
        ? existsSync(command + ending)
        : folder !== '' && existsSync(join(folder, command + ending));
    }),
  );
}

function fail(...lines) {
  console.error(['', 'molae: cannot build the native addon.', ...lines].join('\n'));
  console.error(`On Debian and Ubuntu: apt-get install ${aptPackages}`);
  process.exit(1);
}

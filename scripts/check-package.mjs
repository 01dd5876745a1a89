// Checks the npm package as a user meets it: packs it, looks at what is inside and at what the addon needs, installs it
// in an empty folder with another HOME, an empty cache and a PATH that has node and npm but no compiler, and uses it
// from ESM, CommonJS, TypeScript and the command line. Then the same package without its prebuilt addon: installing
// must work, the first use must say what is missing, and building from source must mend it.

import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const budgetBytes = 15e6;
const fixture = join(root, 'test', 'fixtures', 'tiny-qwen2-moe');
const libraries =
  /^(libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|librt|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+$/;
const entryPoints = ['napi_register_module_v1', 'node_api_module_get_api_version_v1'];
// What Debian 12 and Ubuntu 22.04 have: a newer need would shut their users out.
const newestAllowed = { GLIBC: '2.35', GLIBCXX: '3.4.30', CXXABI: '1.3.13', GCC: '12.0.0' };

const work = mkdtempSync(join(tmpdir(), 'molae-package-'));
const started = Date.now();
process.on('exit', () => rmSync(work, { recursive: true, force: true }));

// One folder of symbolic links stands in for a machine without compilers.
const bin = folder('bin');
for (const name of ['node', 'npm', 'npx', 'sh']) symlinkSync(realpathSync(which(name)), join(bin, name));
const bare = {
  HOME: folder('home'),
  PATH: bin,
  TMPDIR: folder('tmp'),
  CI: 'true',
  npm_config_cache: folder('cache'),
  npm_config_registry: npmSetting('registry'),
  npm_config_update_notifier: 'false',
  npm_config_audit: 'false',
  npm_config_fund: 'false',
  ...passedOn(
    'npm_config_cafile',
    'NODE_EXTRA_CA_CERTS',
    'HTTPS_PROXY',
    'https_proxy',
    'NO_PROXY',
    'no_proxy',
  ),
};

heading('npm pack');
run('npm', ['pack', '--silent', '--pack-destination', folder('pack')], { cwd: root });
const tarballs = readdirSync(join(work, 'pack'));
expect(tarballs.length === 1, `one tarball, not ${tarballs.join(', ')}`);
const tarball = join(work, 'pack', tarballs[0]);
const unpacked = unpack(tarball, 'unpacked');
checkContents();

heading('The addon');
checkAddon();

heading('npm install, no compiler, empty HOME and cache');
for (const tool of ['cc', 'gcc', 'g++', 'clang', 'cmake', 'make', 'python3']) {
  expect(!existsSync(join(bin, tool)), `${tool} is not in PATH`);
}
const app = install('app', tarball);
expect(!existsSync(join(app, 'node_modules', 'molae', 'build')), 'nothing was built');

heading('ESM, CommonJS');
const gemmProgram = `
  using(async () => {
    const device = await molae.openDevice('cpu');
    const a = device.tensor('f32', Float32Array.of(1, 2, 3, 4, 5, 6), [2, 3]);
    const b = device.tensor('f32', Float32Array.of(1, 0, -1, 2, 0.5, 1), [3, 2]);
    const c = await molae.gemm(a, b);
    const got = [...(await c.read())].join(' ');
    if (got !== '0.5 7 2 16') throw new Error('gemm gave ' + got + ' instead of 0.5 7 2 16');
    // Longer than any block of the kernels, against a sum in f64.
    const n = 257;
    const x = Float32Array.from({ length: n * n }, (_, i) => Math.sin(i));
    const y = await (await molae.gemm(device.tensor('f32', x, [n, n]), device.tensor('f32', x, [n, n]))).read();
    for (const [i, j] of [[0, 0], [1, 255], [128, 64], [256, 256]]) {
      let sum = 0;
      for (let k = 0; k < n; k++) sum += x[i * n + k] * x[k * n + j];
      if (Math.abs(sum - y[i * n + j]) > 1e-3) throw new Error('C[' + i + ', ' + j + '] is ' + y[i * n + j] + ', not ' + sum);
    }
    console.log(process.argv[1].split('/').pop() + ': gemm is right on ' + device.info.name);
  });
  function using(main) { main().catch((error) => { console.error(error); process.exit(1); }); }
`;
writeFileSync(join(app, 'esm.mjs'), `import * as molae from 'molae';\n${gemmProgram}`);
writeFileSync(join(app, 'commonjs.cjs'), `const molae = require('molae');\n${gemmProgram}`);
for (const program of ['esm.mjs', 'commonjs.cjs']) run('node', [program], { cwd: app, env: bare });

heading('TypeScript');
checkTypes();

heading('npx molae');
checkCommandLine();

heading('A platform without a prebuilt addon');
checkWithoutPrebuild();

console.log(`\ncheck-package: all right, ${((Date.now() - started) / 1000).toFixed(0)} s`);

function checkContents() {
  const size = statSync(tarball).size;
  const files = listFiles(unpacked);
  console.log(`${tarballs[0]}: ${megabytes(size)} MB of ${megabytes(budgetBytes)} MB, ${files.length} files`);
  expect(size <= budgetBytes, `the tarball is at most ${megabytes(budgetBytes)} MB`);

  const required = ['package.json', 'README.md', 'LICENSE', 'CMakeLists.txt', 'scripts/build-native.mjs'];
  required.push('dist/index.js', 'dist/index.d.ts', 'dist/cli/main.js', addonPath());
  required.push('licenses/OpenBLAS.txt', 'licenses/LAPACK.txt', 'licenses/node-addon-api.txt');
  required.push('python/modeling_molae.py', 'python/configuration_molae.py');
  for (const name of required) expect(files.includes(name), `the package has ${name}`);

  const fitting = [
    /^(package\.json|README\.md|LICENSE|CMakeLists\.txt|CHANGELOG\.md|scripts\/build-native\.mjs)$/,
    /^dist\/.+\.(js|js\.map|d\.ts|d\.ts\.map)$/,
    /^lib\/.+\.ts$/,
    /^native\/.+\.(cc|h|cu|cuh)$/,
    /^cmake\/.+\.(cmake|cc|map)$/,
    /^licenses\/.+\.(txt|md)$/,
    /^python\/.+\.py$/,
    /^docs\/.+\.md$/,
    /^prebuilds\/[a-z0-9]+-[a-z0-9]+\/[^/]+\.(node|so)$/,
  ];
  const junk = files.filter((name) => !fitting.some((pattern) => pattern.test(name)));
  expect(junk.length === 0, `nothing else is inside: ${junk.join(', ')}`);
  for (const name of files) {
    const stem = /^dist\/(.+?)\.(js|js\.map|d\.ts|d\.ts\.map)$/.exec(name)?.[1];
    if (stem) expect(files.includes(`lib/${stem}.ts`), `${name} has its source in lib/`);
    expect(
      !readFileSync(join(unpacked, name)).includes(root),
      `${name} does not name this machine's ${root}`,
    );
  }

  const { scripts = {} } = JSON.parse(readFileSync(join(unpacked, 'package.json'), 'utf8'));
  for (const name of ['preinstall', 'install', 'postinstall'])
    expect(!(name in scripts), `there is no ${name} script`);
}

function checkAddon() {
  const addon = join(unpacked, addonPath());
  checkLibrary(addon, /^(napi|node_api)_/);
  const defined = output('nm', ['-D', '--defined-only', addon]).split('\n').filter(Boolean);
  const exported = defined.map((line) => line.split(' ').at(-1));
  for (const name of exported) expect(entryPoints.includes(name), `${name} is not exported`);
  expect(exported.includes(entryPoints[0]), `${entryPoints[0]} is exported`);

  // A backend's library, where the build made one. What it opens at run time it must not need to be loaded.
  for (const name of readdirSync(dirname(addon)).filter((name) => name.endsWith('.so'))) {
    checkLibrary(join(dirname(addon), name));
  }

  const bytes = readFileSync(addon);
  for (const text of ['Fortran runtime error', 'quadmath']) {
    expect(!bytes.includes(text), `no "${text}": its license is not among licenses/`);
  }
  expect(!/\.(symtab|debug_info)\b/.test(output('readelf', ['-SW', addon])), 'the addon is stripped');
}

/** What a library needs is part of every system that we support, or has a name that `fromHost` knows. */
function checkLibrary(file, fromHost) {
  const needed = [...output('readelf', ['-dW', file]).matchAll(/\(NEEDED\).*\[(.+?)\]/g)].map(
    ([, name]) => name,
  );
  console.log(`${basename(file)} needs ${needed.join(', ')}`);
  for (const name of needed) expect(libraries.test(name), `${name} is part of every system`);

  const newest = {};
  for (const line of output('nm', ['-D', '--undefined-only', file]).split('\n').filter(Boolean)) {
    const [kind, symbol] = line.trim().split(' ');
    const [, set, version] = /@+([A-Z]+)_([\d.]+)$/.exec(symbol) ?? [];
    if (!set) expect(kind === 'w' || fromHost?.test(symbol), `${symbol} comes from Node or a system library`);
    else if (!newest[set] || compareVersions(version, newest[set]) > 0) newest[set] = version;
  }
  console.log(
    `built against ${Object.entries(newest)
      .map(([set, version]) => `${set} ${version}`)
      .join(', ')}`,
  );
  for (const [set, version] of Object.entries(newest)) {
    const old = newestAllowed[set] && compareVersions(version, newestAllowed[set]) <= 0;
    expect(old, `${set} ${version} is at most ${newestAllowed[set]}`);
  }
}

function checkTypes() {
  const source = `
import { gemm, openDevice, type Tensor } from 'molae';

export async function product(): Promise<Float32Array> {
  const device = await openDevice('cpu', { threads: 1 });
  const a: Tensor<'f32'> = device.tensor('f32', new Float32Array(4), [2, 2]);
  const c: Tensor = await gemm(a, a, { transposeB: true, alpha: 2 });
  // @ts-expect-error there is no such dtype
  device.empty('f12', [1]);
  // @ts-expect-error a shape has numbers
  device.empty('f32', ['1']);
  c.dispose();
  return a.read();
}
`;
  writeFileSync(join(app, 'consumer.mts'), source);
  writeFileSync(join(app, 'consumer.cts'), source);
  const options = {
    target: 'es2022',
    lib: ['es2023', 'esnext.disposable'],
    module: 'nodenext',
    strict: true,
    exactOptionalPropertyTypes: true,
    skipLibCheck: false,
    noEmit: true,
    types: ['node'],
    typeRoots: [join(root, 'node_modules', '@types')],
  };
  const config = { compilerOptions: options, files: ['consumer.mts', 'consumer.cts'] };
  writeFileSync(join(app, 'tsconfig.json'), JSON.stringify(config));
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  run('node', [tsc, '-p', 'tsconfig.json'], { cwd: app, env: bare });
  console.log('consumer.mts and consumer.cts compile: strict, nodenext');
}

function checkCommandLine() {
  const doctor = json('npx', ['--no-install', 'molae', 'doctor', '--json']);
  const cpu = doctor.backends?.find(({ name }) => name === 'cpu');
  expect(cpu?.available === true, `doctor finds the CPU: ${JSON.stringify(doctor)}`);
  console.log(`molae doctor: version ${doctor.version}, ${doctor.platform}`);

  const convert = [
    '--no-install',
    'molae',
    'convert',
    fixture,
    'latent',
    '--latent-size',
    '48',
    '--group-size',
    '4',
  ];
  const report = json('npx', [...convert, '--json']);
  const { before, after } = report.expertParameters ?? {};
  expect(after > 0 && after < before, `fewer parameters after than before: ${before}, ${after}`);
  expect(report.layers?.length > 0, 'the report has layers');
  for (const { layer, operator, relativeError, optimalRelativeError } of report.layers) {
    const sane = relativeError >= optimalRelativeError * 0.99 && relativeError < optimalRelativeError + 0.01;
    expect(
      sane,
      `layer ${layer} ${operator}: error ${relativeError} is close to the least possible, ${optimalRelativeError}`,
    );
  }
  expect(existsSync(join(app, 'latent', 'config.json')), 'the converted checkpoint has a config.json');
  console.log(
    `molae convert: ${before} → ${after} parameters, ${report.layers.length} factorizations, ${report.seconds} s`,
  );
}

function checkWithoutPrebuild() {
  rmSync(join(unpacked, 'prebuilds'), { recursive: true });
  const other = join(work, 'molae-without-prebuild.tgz');
  run('tar', ['-czf', other, '-C', dirname(unpacked), 'package']);
  const app = install('app-without-prebuild', other);
  const program = `
    import { openDevice } from 'molae';
    const error = await openDevice('cpu').then(() => undefined, (error) => error);
    console.log(JSON.stringify({ code: error?.code, message: error?.message }));
  `;
  writeFileSync(join(app, 'first-use.mjs'), program);
  const { code, message = '' } = JSON.parse(output('node', ['first-use.mjs'], { cwd: app, env: bare }));
  expect(code === 'ADDON_UNAVAILABLE', `the first use fails with ADDON_UNAVAILABLE, not ${code}`);
  expect(
    /CMake/i.test(message) && message.includes('npm run build:native'),
    `it says how to build: ${message}`,
  );
  console.log(message.replaceAll(work, '…'));

  const installed = join(app, 'node_modules', 'molae');
  const refused = spawnSync(join(bin, 'npm'), ['run', 'build:native'], {
    cwd: installed,
    env: bare,
    encoding: 'utf8',
  });
  expect(
    refused.status !== 0 && refused.stderr.includes('apt-get install'),
    `the build says what is missing: ${refused.stderr}`,
  );

  console.log('npm run build:native, in the installed package');
  const log = spawnSync('npm', ['run', 'build:native'], {
    cwd: installed,
    env: { ...bare, PATH: [bin, process.env.PATH].join(delimiter) },
    encoding: 'utf8',
  });
  expect(log.status === 0, `the source build works:\n${log.stdout}\n${log.stderr}`);
  cpSync(join(work, 'app', 'esm.mjs'), join(app, 'esm.mjs'));
  run('node', ['esm.mjs'], { cwd: app, env: bare });
}

function install(name, archive) {
  const app = folder(name);
  writeFileSync(join(app, 'package.json'), JSON.stringify({ name, private: true }));
  const start = Date.now();
  run('npm', ['install', '--loglevel=error', archive], { cwd: app, env: bare });
  const { packages } = JSON.parse(readFileSync(join(app, 'node_modules', '.package-lock.json'), 'utf8'));
  const withScripts = Object.keys(packages).filter((path) => packages[path].hasInstallScript);
  expect(withScripts.length === 0, `nothing ran at install: ${withScripts.join(', ')}`);
  console.log(`${Object.keys(packages).length} packages, ${((Date.now() - start) / 1000).toFixed(1)} s`);
  return app;
}

/** Where node-gyp-build looks on this machine. */
function addonPath() {
  const { glibcVersionRuntime } = process.report.getReport().header;
  const libc = process.platform === 'linux' && !glibcVersionRuntime ? 'musl' : 'glibc';
  return `prebuilds/${process.platform}-${process.arch}/molae.${libc}.node`;
}

function unpack(archive, name) {
  run('tar', ['-xzf', archive, '-C', folder(name)]);
  return join(work, name, 'package');
}

function listFiles(directory) {
  const entries = readdirSync(directory, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile());
  return files.map((entry) => join(entry.parentPath, entry.name).slice(directory.length + 1)).sort();
}

function folder(name) {
  const path = join(work, name);
  mkdirSync(path, { recursive: true });
  return path;
}

function heading(text) {
  console.log(`\n-- ${text}`);
}

function expect(condition, what) {
  if (condition) return;
  console.error(`check-package: not so: ${what}`);
  process.exit(1);
}

function run(command, args, options = {}) {
  const { status, error } = spawnSync(locate(command, options), args, { stdio: 'inherit', ...options });
  expect(status === 0, `${command} ${args.join(' ')} works (${error?.message ?? `exit status ${status}`})`);
}

function output(command, args, options = {}) {
  const result = spawnSync(locate(command, options), args, {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'inherit'],
    ...options,
  });
  expect(
    result.status === 0,
    `${command} ${args.join(' ')} works (${result.error?.message ?? `exit status ${result.status}`})`,
  );
  return result.stdout;
}

function json(command, args) {
  const text = output(command, args, { cwd: app, env: bare });
  try {
    return JSON.parse(text);
  } catch {
    return expect(false, `${command} ${args.join(' ')} prints exactly one JSON object: ${text}`);
  }
}

function locate(command, { env }) {
  return env?.PATH === bin ? join(bin, command) : command;
}

function which(command) {
  const places = (process.env.PATH ?? '').split(delimiter).map((folder) => join(folder, command));
  const place = places.find((path) => existsSync(path) && !path.includes('node_modules'));
  expect(place, `${command} is in PATH`);
  return place;
}

function npmSetting(name) {
  return output('npm', ['config', 'get', name], { cwd: work }).trim();
}

function passedOn(...names) {
  return Object.fromEntries(
    names.filter((name) => process.env[name]).map((name) => [name, process.env[name]]),
  );
}

function compareVersions(a, b) {
  const [x, y] = [a, b].map((version) => version.split('.').map(Number));
  for (let i = 0; i < Math.max(x.length, y.length); i++) {
    const difference = (x[i] ?? 0) - (y[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

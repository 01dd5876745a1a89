import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { cp, mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { openDevice } from '../lib/device.ts';
import { DenseExperts } from '../lib/experts.ts';
import { deadline } from './support/deadline.ts';
import { Random, toTensor } from './support/random.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const library = JSON.stringify(join(root, 'dist/index.js'));

/** Runs a module in a process of its own; a crash or a hang is an error with what it wrote. */
function run(code: string, env: NodeJS.ProcessEnv = process.env): Promise<{ stdout: string }> {
  return promisify(execFile)(process.execPath, ['--input-type=module', '-e', code], {
    timeout: deadline(60),
    env,
  });
}

/** Starts many products and a decomposition, and waits for none of them. */
const busy = `
  const { openDevice, gemm, svd } = await import(${library});
  const device = await openDevice('cpu');
  const a = device.tensor('f32', new Float32Array(700 * 700).fill(0.5).map((v, i) => v + (i % 7)), [700, 700]);
  const calls = Array.from({ length: 20 }, () => gemm(a, a));
  calls.push(svd(a).catch(() => {}));
`;

/** The same with so many kilobytes of address space. */
function runWithin(kilobytes: number, code: string): Promise<{ stdout: string }> {
  const command = `ulimit -v ${Math.round(kilobytes)}; exec "$0" --input-type=module -e "$1"`;
  return promisify(execFile)('sh', ['-c', command, process.execPath, code], { timeout: deadline(60) });
}

describe('a process', () => {
  // A sanitizer takes terabytes of it.
  test.runIf(process.platform === 'linux' && !process.env.MOLAE_SANITIZER)(
    'whose address space is limited multiplies, or is told that it is too little',
    async () => {
      const code = `
        ${busy}
        await Promise.all(calls);
        const { readFileSync } = await import('node:fs');
        console.log(/VmPeak:\\s*(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);`;
      const unlimited = Number((await run(code)).stdout);
      const told = `process.on('uncaughtException', ({ code }) => console.log(code)); ${code}`;
      for (const share of [0.7, 0.8, 0.9]) {
        const { stdout } = await runWithin(share * unlimited, told);
        expect(stdout).toMatch(/^(\d+|OUT_OF_MEMORY)$/m);
      }
      expect((await runWithin(2 * unlimited, told)).stdout).toMatch(/^\d+$/m);
    },
    deadline(120),
  );

  test('that exits in mid-call neither crashes nor hangs', async () => {
    for (const delay of [0, 5, 50, 200]) {
      await run(`${busy} setTimeout(() => process.exit(0), ${delay});`);
    }
  });

  // build/on-host has a backend in a library of its own, which is torn down at exit as the CUDA runtime is.
  const onHost = join(root, 'build/on-host');
  test.skipIf(!existsSync(onHost))(
    'that exits in mid-call of a library with exit handlers of its own stops calls before those',
    async () => {
      for (const delay of [0, 5, 50, 200]) {
        const code = `${busy.replace("'cpu'", "'cuda'")} setTimeout(() => process.exit(0), ${delay});`;
        await run(code, { ...process.env, MOLAE_PREBUILD: onHost });
      }
    },
  );

  test('ends by itself when its work is done, with a device still open', async () => {
    const { stdout } = await run(`${busy} Promise.all(calls).then(() => console.log('done'));`);
    expect(stdout).toBe('done\n');
  });

  test('may terminate worker threads in mid-call, again and again', async () => {
    const { stdout } = await run(`
      import { Worker } from 'node:worker_threads';
      const code = ${JSON.stringify(`(async () => { ${busy} (await import('node:worker_threads')).parentPort.postMessage('busy'); })();`)};
      for (let round = 0; round < 6; round++) {
        const workers = Array.from({ length: 4 }, () => new Worker(code, { eval: true }));
        await Promise.all(workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))));
        await Promise.all(workers.map((worker) => worker.terminate()));
      }
      ${busy}
      await Promise.all(calls);
      console.log('alive');`);
    expect(stdout).toBe('alive\n');
  });

  test('works in the main thread and a worker at once, with the same results', async () => {
    const { stdout } = await run(`
      import { Worker } from 'node:worker_threads';
      const sum = 'const y = await (await gemm(a, a)).read(); const total = y.reduce((s, v) => s + v, 0);';
      const worker = new Worker('(async () => {' + ${JSON.stringify(busy)} + sum + '(await import("node:worker_threads")).parentPort.postMessage(total); })();', { eval: true });
      const other = new Promise((resolve) => worker.once('message', resolve));
      ${busy}
      const y = await (await gemm(a, a)).read();
      console.log((await other) === y.reduce((s, v) => s + v, 0));`);
    expect(stdout).toBe('true\n');
  });
});

describe('many calls', () => {
  test('10,000 cycles of create, forward and dispose keep the memory flat', async () => {
    const device = await openDevice('cpu');
    const random = new Random(1);
    const matrices = () => [
      toTensor(device, 'f32', random.matrix(8, 8)),
      toTensor(device, 'f32', random.matrix(8, 8)),
    ];
    const cycle = () => {
      const [gate, up, down] = [matrices(), matrices(), matrices()];
      const layer = new DenseExperts({ gate, up, down });
      const x = device.tensor('f32', new Float32Array(8).fill(1), [1, 8]);
      const routing = {
        ids: device.tensor('i32', Int32Array.of(1), [1, 1]),
        weights: device.tensor('f32', Float32Array.of(1), [1, 1]),
      };
      const y = layer.forwardSync(x, routing);
      for (const item of [...gate, ...up, ...down, x, routing.ids, routing.weights, y, layer]) item.dispose();
    };
    for (let i = 0; i < 2000; i++) cycle();
    const before = process.memoryUsage().rss;
    const tensors = device.memoryUsage().tensors;
    for (let i = 0; i < 10_000; i++) cycle();
    expect(device.memoryUsage().tensors).toBe(tensors);
    // A sanitizer keeps freed memory for a while (scripts/sanitize.sh).
    if (!process.env.MOLAE_SANITIZER) expect(process.memoryUsage().rss - before).toBeLessThan(64e6);
    device.dispose();
  });

  test('1,000 aborted calls leave nothing behind, and the device works on', async () => {
    const device = await openDevice('cpu');
    const random = new Random(2);
    const w = (rows: number, cols: number) => [toTensor(device, 'f32', random.matrix(rows, cols))];
    using layer = new DenseExperts({ gate: w(64, 64), up: w(64, 64), down: w(64, 64) });
    const x = device.tensor('f32', new Float32Array(256 * 64).fill(0.1), [256, 64]);
    const routing = {
      ids: device.tensor('i32', new Int32Array(256), [256, 1]),
      weights: device.tensor('f32', new Float32Array(256).fill(1), [256, 1]),
    };
    const out = device.empty('f32', [256, 64]);
    const tensors = device.memoryUsage().tensors;
    const outcomes = new Set<string>();
    for (let i = 0; i < 1000; i++) {
      const controller = new AbortController();
      const call = layer.forward(x, routing, { out, signal: controller.signal });
      controller.abort();
      outcomes.add(
        await call.then(
          () => 'done',
          (error) => error.code,
        ),
      );
    }
    expect(outcomes.has('ABORTED')).toBe(true);
    expect([...outcomes].filter((outcome) => outcome !== 'ABORTED' && outcome !== 'done')).toEqual([]);
    expect(device.memoryUsage().tensors).toBe(tensors);
    await layer.forward(x, routing, { out });
    expect((await out.read()).every(Number.isFinite)).toBe(true);
    device.dispose();
  });
});

describe('environment variables', () => {
  const open = `
    const { openDevice } = await import(${library});
    await openDevice('auto').then(
      ({ kind }) => console.log(kind),
      ({ code, message }) => console.log(code + ' ' + message),
    );`;
  const runWith = (variables: Record<string, string>) => run(open, { ...process.env, ...variables });

  test('MOLAE_BACKEND is the device of auto, and a wrong one is an error that names it', async () => {
    expect((await runWith({ MOLAE_BACKEND: 'cpu' })).stdout).toBe('cpu\n');
    expect((await runWith({ MOLAE_BACKEND: '' })).stdout).toBe('cpu\n');
    expect((await runWith({ MOLAE_BACKEND: 'tpu' })).stdout).toMatch(
      /^INVALID_ARGUMENT .*MOLAE_BACKEND.*"tpu"/,
    );
    // No machine has that many: it must not fall back to the CPU.
    expect((await runWith({ MOLAE_BACKEND: 'cuda:999' })).stdout).toMatch(/^DEVICE_UNAVAILABLE /);
  });

  test('MOLAE_INSTRUCTIONS limits the vectors that kernels and BLAS take, and more than there is is an error', async () => {
    const describeCpu = `
      const { openDevice } = await import(${library});
      await openDevice('cpu').then(
        ({ info }) => console.log(JSON.stringify(info)),
        ({ code, message }) => console.log(code + ' ' + message),
      );`;
    const runLimited = async (instructions: string) =>
      (await run(describeCpu, { ...process.env, MOLAE_INSTRUCTIONS: instructions })).stdout;
    expect(JSON.parse(await runLimited('plain')).features).toEqual([]);
    expect(await runLimited('avx3')).toMatch(/^INVALID_ARGUMENT .*MOLAE_INSTRUCTIONS.*avx3/);
    const { features } = JSON.parse(await runLimited(''));
    if (features.includes('avx2')) {
      const limited = JSON.parse(await runLimited('avx2'));
      expect(limited.features).toEqual(['avx2', 'fma']);
      // Whatever OpenBLAS thinks of the processor, unless it was told.
      if (!process.env.OPENBLAS_CORETYPE) expect(limited.library).toMatch(/Haswell|Zen|Excavator/);
    }
    if (!features.includes('avx512')) {
      expect(await runLimited('avx512')).toMatch(/^INVALID_ARGUMENT .*MOLAE_INSTRUCTIONS.*avx512/);
    } else if (!process.env.OPENBLAS_CORETYPE) {
      expect(JSON.parse(await runLimited('')).library).toMatch(/SkylakeX|Cooperlake|SapphireRapids|Zen/);
    }
  });

  test('MOLAE_PREBUILD is where the addon is looked for, and the error names it', async () => {
    const elsewhere = await mkdtemp(join(tmpdir(), 'molae-prebuild-'));
    try {
      const { stdout } = await runWith({ MOLAE_PREBUILD: elsewhere });
      expect(stdout).toMatch(/^ADDON_UNAVAILABLE /);
      expect(stdout).toContain(join(elsewhere, 'prebuilds'));
      expect(stdout).toContain('MOLAE_PREBUILD');
      await cp(join(root, 'build/Release'), join(elsewhere, 'build/Release'), { recursive: true });
      expect((await runWith({ MOLAE_PREBUILD: elsewhere })).stdout).toBe('cpu\n');
    } finally {
      await rm(elsewhere, { recursive: true });
    }
  });
});

test('two copies of the package in one process compute side by side and refuse each other', async () => {
  const copy = await mkdtemp(join(tmpdir(), 'molae-copy-'));
  try {
    for (const part of ['dist', 'package.json'])
      await cp(join(root, part), join(copy, part), { recursive: true });
    // Each has an addon of its own, also where the suite is told to take another one than the package's.
    const { MOLAE_PREBUILD: tested = root, ...env } = process.env;
    await cp(join(tested, 'build/Release'), join(copy, 'build/Release'), { recursive: true });
    await symlink(join(root, 'node_modules'), join(copy, 'node_modules'));
    const { stdout } = await run(
      `
      const one = await import(${library});
      const two = await import(${JSON.stringify(join(copy, 'dist/index.js'))});
      const layers = [];
      const products = await Promise.all([one, two, one, two].map(async (molae) => {
        const device = await molae.openDevice('cpu');
        const a = device.tensor('f32', Float32Array.from({ length: 90000 }, (_, i) => i % 7), [300, 300]);
        layers.push(new molae.DenseExperts({ gate: [a], up: [a], down: [a] }));
        let y = a;
        for (let i = 0; i < 5; i++) y = await molae.gemm(y, a, { alpha: 1e-3 });
        return { a, sum: (await y.read()).reduce((s, v) => s + v, 0) };
      }));
      if (new Set(products.map(({ sum }) => sum)).size !== 1) throw new Error('results differ');
      const code = (call) => call().then(() => 'nothing', (error) => error.code);
      console.log(await code(() => one.gemm(products[0].a, products[1].a)));
      console.log(await code(() => one.factorizeExperts(layers[1], { groupSize: 1, latentSize: 4, onProgress() {} })));
      // The native side alone, as when TypeScript's checks miss something.
      console.log(await code(async () => products[0].a.device.native.copy(products[0].a.native, products[1].a.native)));`,
      env,
    );
    expect(stdout.split('\n').slice(0, 3)).toEqual([
      'INVALID_ARGUMENT',
      'INVALID_ARGUMENT',
      'INVALID_ARGUMENT',
    ]);
  } finally {
    await rm(copy, { recursive: true });
  }
});

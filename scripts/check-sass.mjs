#!/usr/bin/env node
// The machine code of the Hopper kernels: scripts/check-sass.mjs [libmolae_cuda.so]. Needs cuobjdump (and nvdisasm), from
// a CUDA toolkit or `scripts/cuda-toolkit.sh --tools`; without it, says so and succeeds, unless MOLAE_REQUIRE_SASS=1.
//
// In every kernel: products by wgmma (HGMMA), four of them under way together; weights by the copy engine (UTMALDG); tokens
// by asynchronous copies (LDGSTS); registers moved from the producer to the consumers (USETMAXREG); and no local memory
// (LDL, STL), which is where spilled registers and arrays with run-time indices go.

import { execFileSync, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const library = process.argv[2] ?? join(root, 'build/Release/libmolae_cuda.so');
const architecture = 'sm_90a';
const kernelName = 'hopper_gemm_kernel';
const wantedKernels = 12; // 6 tiles, bf16 and f16
const productsOfStage = 4; // a stage of 64 halves, 16 at a time

const tool = findTool();
if (!existsSync(library) || !tool) {
  const required = process.env.MOLAE_REQUIRE_SASS === '1';
  const missing = tool
    ? `there is no ${library}`
    : 'there is no cuobjdump: scripts/cuda-toolkit.sh --tools installs one';
  console.log(`${required ? 'FAILED' : 'skipped'}: ${missing}`);
  process.exit(required ? 1 : 0);
}

function findTool() {
  const folders = [
    process.env.CUDACXX && dirname(process.env.CUDACXX),
    process.env.CUDA_PATH && join(process.env.CUDA_PATH, 'bin'),
    ...(process.env.PATH ?? '').split(':'),
    join(root, 'build/cuda-toolkit/nvidia/cu13/bin'),
    '/usr/local/cuda/bin',
  ];
  return folders
    .filter(Boolean)
    .map((folder) => join(folder, 'cuobjdump'))
    .find(existsSync);
}

/** TileShape<In, rows, swapped, boxes> of a mangled name, as config/tile_choice.h calls it. */
function describe(mangled) {
  const [, type, rows, swapped, boxes] = /(BF16|F16)ELi(\d+)ELb([01])ELi(\d)E/.exec(mangled) ?? [];
  if (!type) throw new Error(`A kernel with an unknown name: ${mangled}`);
  const kind = swapped === '1' ? '' : boxes === '2' ? ' wide' : ' paired';
  return `hopper${rows}${kind} ${type.toLowerCase()}`;
}

/** Counts of instructions by kernel. */
async function readInstructions() {
  const kernels = new Map();
  let counts;
  const child = spawn(tool, ['-sass', '-arch', architecture, library], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((resolve) => child.on('close', resolve));
  for await (const line of createInterface({ input: child.stdout })) {
    const name = /Function : (\S+)/.exec(line)?.[1];
    if (name) {
      counts = name.includes(kernelName) ? { last: 0 } : undefined;
      if (counts) kernels.set(describe(name), counts);
      continue;
    }
    const instruction =
      counts && /^\s+\/\*[0-9a-f]+\*\/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*?);/.exec(line);
    if (!instruction) continue;
    const [, operation, operands] = instruction;
    counts[operation] = (counts[operation] ?? 0) + 1;
    if (operation === 'HGMMA' && operands.includes('gsb0')) counts.last += 1;
  }
  if ((await ended) !== 0) throw new Error(`${tool} failed`);
  return kernels;
}

/** What `cuobjdump --dump-resource-usage` says of each kernel. */
function readResources() {
  const text = execFileSync(tool, ['--dump-resource-usage', '-arch', architecture, library], {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  const resources = new Map();
  for (const [, name, usage] of text.matchAll(/Function (\S+?):\s*\n\s*(.*)/g)) {
    if (name.includes(kernelName)) {
      resources.set(
        describe(name),
        Object.fromEntries([...usage.matchAll(/([A-Z]+):(\d+)/g)].map(([, k, v]) => [k, +v])),
      );
    }
  }
  return resources;
}

const kernels = await readInstructions();
const resources = readResources();
const problems = [];
const expect = (condition, message) => condition || problems.push(message);

console.log('kernel                 registers  stack  local  HGMMA  UTMALDG  LDGSTS  LDL+STL');
for (const [name, counts] of [...kernels].sort(([a], [b]) => a.localeCompare(b, 'en', { numeric: true }))) {
  const { REG, STACK, LOCAL } = resources.get(name) ?? {};
  const of = (operation) => counts[operation] ?? 0;
  const local = of('LDL') + of('STL');
  const columns = [REG, STACK, LOCAL, of('HGMMA'), of('UTMALDG'), of('LDGSTS'), local];
  const widths = [11, 7, 7, 7, 9, 8, 9];
  console.log(name.padEnd(21) + columns.map((value, i) => String(value).padStart(widths[i])).join(''));
  expect(of('HGMMA') > 0, `${name}: no wgmma`);
  expect(
    of('HGMMA') === productsOfStage * counts.last,
    `${name}: wgmma one by one, not ${productsOfStage} together`,
  );
  expect(of('UTMALDG') > 0, `${name}: no copies by the copy engine`);
  expect(of('LDGSTS') > 0, `${name}: no asynchronous copies`);
  expect(of('USETMAXREG') === 2, `${name}: registers are not moved`);
  expect(local === 0 && STACK === 0 && LOCAL === 0, `${name}: local memory`);
}
expect(kernels.size === wantedKernels, `${kernels.size} kernels in ${architecture}, not ${wantedKernels}`);
for (const problem of problems) console.log(`FAILED: ${problem}`);
if (problems.length === 0) console.log(`ok: ${kernels.size} kernels`);
process.exitCode = problems.length === 0 ? 0 : 1;

#!/usr/bin/env node
// The machine code of the kernels that speed depends on: scripts/check-sass.mjs [libmolae_cuda.so]. Needs cuobjdump (and
// nvdisasm), from a CUDA toolkit or `scripts/cuda-toolkit.sh --tools`; without it, says so and succeeds, unless
// MOLAE_REQUIRE_SASS=1.
//
// In none of them local memory (LDL, STL), which is where spilled registers and arrays with run-time indices go. In every
// Hopper kernel: products by wgmma (HGMMA), four of them under way together; weights by the copy engine (UTMALDG); tokens
// by asynchronous copies (LDGSTS); registers moved from the producer to the consumers (USETMAXREG); no division that looks
// whether it needs its slow way (FCHK). In every streaming kernel, for either architecture: weights in loads of 16 bytes
// that leave the caches first (LDG.E.EF.128), eight of them one after the other, before anything waits for the first; nearly
// the same in the decoder's products of few rows. In every tile of the tensor cores, for either architecture: matrices from shared memory by LDSM, four at a time, products of
// 16 x 8 x 16 (HMMA) with next to nothing else between them, stages by asynchronous copies.
//
// Kernels of a layer's chain wait (ACQBULK) for the one before them, on every way through their code: before that they do
// not write, copy tokens, multiply, end or let the next one begin (PREEXIT), and they load the tile map and the tables of
// weights at most. Products ask for weights before it: prefetches (CCTL), or copies by the copy engine.

import { execFileSync, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const library = process.argv[2] ?? join(root, 'build/Release/libmolae_cuda.so');
const productsOfStage = 4; // a stage of 64 halves, 16 at a time
const loadsTogether = 8; // 4 columns, 2 steps
const mostBetween = 4; // addresses
const registersAtEntry = 168; // kernels/hopper/grouped_gemm.cuh deals them out anew

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

/** What a kernel is called here, from its mangled name. */
function describeHopper(mangled) {
  // TileShape<In, rows, swapped, boxes>, as config/tile_choice.h calls it
  const [, type, rows, swapped, boxes] = /(BF16|F16)ELi(\d+)ELb([01])ELi(\d)E/.exec(mangled) ?? [];
  if (!type) throw new Error(`A kernel with an unknown name: ${mangled}`);
  const kind = swapped === '1' ? '' : boxes === '2' ? ' wide' : ' paired';
  return `hopper${rows}${kind} ${type.toLowerCase()}`;
}

function describeStreamed(mangled) {
  const [, type, dual] = /kernelI(?:NS0_\d(BF16|F16)E|[fd])Lb([01])E/.exec(mangled) ?? [];
  if (!dual) throw new Error(`A kernel with an unknown name: ${mangled}`);
  const name = type?.toLowerCase() ?? (mangled.includes('kernelIf') ? 'f32' : 'f64');
  return `stream ${name}${dual === '1' ? ' dual' : ''}`;
}

function describeLinear(mangled) {
  const [, type, rows] = /StreamedLinearI(?:NS0_\d(BF16|F16)E|f)Li(\d)E/.exec(mangled) ?? [];
  if (!rows) throw new Error(`A kernel with an unknown name: ${mangled}`);
  return `linear ${type?.toLowerCase() ?? 'f32'}, ${rows} rows`;
}

function describeTile(mangled) {
  const [, math, type, rows, dual] =
    /(TensorCore|Simt)MathI(?:NS0_\d(BF16|F16)E|[fd])Li(\d+)E.*Lb([01])EEE/.exec(mangled) ?? [];
  if (!math) throw new Error(`A kernel with an unknown name: ${mangled}`);
  const name = type?.toLowerCase() ?? (mangled.includes('MathIf') ? 'f32' : 'f64');
  return `tile${rows} ${name}${dual === '1' ? ' dual' : ''}`;
}

function describeChained(mangled) {
  if (mangled.includes('hopper_gemm')) return describeHopper(mangled);
  if (mangled.includes('19grouped_gemm')) return describeTile(mangled);
  const [, name, type, dual] =
    /\d([a-z_]+)_kernel(?:I(NS0_\d(?:BF16|F16)E|[fd])(?:Lb([01])E)?)?/.exec(mangled) ?? [];
  const types = { f: ' f32', d: ' f64' };
  const of = type ? (types[type] ?? ` ${/B?F16/.exec(type)[0].toLowerCase()}`) : '';
  return `${name}${of}${dual === '1' ? ' dual' : ''}`;
}

const listings = new Map();

/**
 * The instructions of each kernel that is looked at, [operation with its modifiers, operands, address, under a predicate],
 * by its mangled name.
 */
async function readInstructions(architecture) {
  if (listings.has(architecture)) return listings.get(architecture);
  const kernels = new Map();
  let instructions;
  const child = spawn(tool, ['-sass', '-arch', architecture, library], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((resolve) => child.on('close', resolve));
  for await (const line of createInterface({ input: child.stdout })) {
    const name = /Function : (\S+)/.exec(line)?.[1];
    if (name) {
      instructions = families.some((family) => family.kernel.test(name)) ? [] : undefined;
      if (instructions) kernels.set(name, instructions);
      continue;
    }
    const [, address, guard, operation, operands] =
      (instructions && /^\s+\/\*([0-9a-f]+)\*\/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);/.exec(line)) || [];
    if (operation) instructions.push([operation, operands, Number.parseInt(address, 16), Boolean(guard)]);
  }
  if ((await ended) !== 0) throw new Error(`${tool} failed`);
  listings.set(architecture, kernels);
  return kernels;
}

/** What `cuobjdump --dump-resource-usage` says of each kernel. */
function readResources(architecture) {
  const text = execFileSync(tool, ['--dump-resource-usage', '-arch', architecture, library], {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  const resources = new Map();
  for (const [, name, usage] of text.matchAll(/Function (\S+?):\s*\n\s*(.*)/g)) {
    resources.set(
      name,
      Object.fromEntries([...usage.matchAll(/([A-Z]+):(\d+)/g)].map(([, k, v]) => [k, +v])),
    );
  }
  return resources;
}

const count = (instructions, ...names) =>
  instructions.filter(([operation]) => names.some((name) => `${operation}.`.startsWith(`${name}.`))).length;

/** Where an instruction may go on: addresses. The address behind a call stands for its return. */
function successors(instructions, index) {
  const [operation, operands, , guarded] = instructions[index];
  const next = instructions[index + 1]?.[2];
  const targets = [...operands.matchAll(/\b0x([0-9a-f]+)\s*$/g)].map(([, digits]) =>
    Number.parseInt(digits, 16),
  );
  switch (operation.split('.')[0]) {
    case 'EXIT':
    case 'RET':
      return guarded ? [next] : [];
    case 'BRA': {
      const always = !guarded && /^\s*0x[0-9a-f]+\s*$/.test(operands);
      return always ? targets : [...targets, next];
    }
    case 'CALL':
      return [...targets, next];
    case 'BRX':
    case 'JMX':
    case 'JMP':
      throw new Error(`${operation} goes to an address that is not known here`);
    default:
      return [next];
  }
}

/** The instructions that a thread may come to without having waited for the kernel before this one. */
function beforeWait(instructions) {
  const indices = new Map(instructions.map(([, , address], index) => [address, index]));
  const reached = new Set([0]);
  for (const index of reached) {
    if (instructions[index][0] === 'ACQBULK') continue;
    for (const address of successors(instructions, index)) {
      const next = indices.get(address);
      if (next !== undefined) reached.add(next);
    }
  }
  return [...reached].map((index) => instructions[index]).filter(([operation]) => operation !== 'ACQBULK');
}

/** The most loads of weights with nothing between them that reads what one of them brings. */
function mostLoadsTogether(instructions) {
  let most = 0;
  let loaded = [];
  for (const [operation, operands] of instructions) {
    const registers = [...operands.matchAll(/\bR(\d+)/g)].map(([, number]) => +number);
    if (operation === 'LDG.E.EF.128') {
      loaded.push(registers[0]);
      most = Math.max(most, loaded.length);
    } else if (/^(BRA|EXIT|RET|CALL)/.test(operation)) {
      loaded = operation === 'BRA' ? loaded : [];
    } else if (
      registers.some((register) => loaded.some((first) => register >= first && register < first + 4))
    ) {
      loaded = [];
    }
  }
  return most;
}

/** The most instructions, other than loads of matrices, between two products of one stage. */
function mostBetweenProducts(code) {
  let most = 0;
  let since = Number.NaN; // before the first product of a stage
  for (const [operation] of code) {
    if (operation.startsWith('HMMA')) {
      most = Math.max(most, since || 0);
      since = 0;
    } else if (/^(BRA|BAR|EXIT)/.test(operation)) {
      since = Number.NaN;
    } else if (!operation.startsWith('LDSM')) {
      since++;
    }
  }
  return most;
}

/**
 * What a kernel of the chain does before it waits. Loads: of the tile map the problem; of a weight address, rows, inner size
 * and dtype, for one or two weights.
 */
const aheadOfWait = [
  { of: /^hopper/, loads: 3, prefetches: false, copies: true }, // an address and a dtype are in the copy engine's map
  { of: /^tile/, loads: 5, prefetches: true, copies: false },
  { of: /^streamed_gemm/, loads: 9, prefetches: true, copies: false },
  { of: /./, loads: 0, prefetches: false, copies: false },
];

const families = [
  {
    kernel: /hopper_gemm_kernel/,
    describe: describeHopper,
    architectures: ['sm_90a'],
    wanted: 12, // 6 tiles, bf16 and f16
    columns: (code) => ({
      HGMMA: count(code, 'HGMMA'),
      UTMALDG: count(code, 'UTMALDG'),
      LDGSTS: count(code, 'LDGSTS'),
      instructions: code.length,
    }),
    check(code, expect, _name, registers) {
      const products = code.filter(([operation]) => operation.startsWith('HGMMA'));
      const last = products.filter(([, operands]) => operands.includes('gsb0')).length;
      expect(products.length > 0, 'no wgmma');
      expect(products.length === productsOfStage * last, `wgmma one by one, not ${productsOfStage} together`);
      expect(count(code, 'UTMALDG') > 0, 'no copies by the copy engine');
      expect(count(code, 'LDGSTS') > 0, 'no asynchronous copies');
      expect(count(code, 'USETMAXREG') === 2, 'registers are not moved');
      // Consumers wait for ever for more than the producer gives back of these.
      expect(
        registers === registersAtEntry,
        `a kernel that begins without ${registersAtEntry} registers a thread`,
      );
      expect(count(code, 'FCHK') === 0, 'divisions with a slow way');
    },
  },
  {
    kernel: /streamed_gemm_kernel/,
    describe: describeStreamed,
    architectures: ['sm_80', 'sm_90a'],
    wanted: 8, // bf16, f16, f32 and f64; single and dual
    columns: (code) => ({
      'LDG.E.EF.128': count(code, 'LDG.E.EF.128'),
      together: mostLoadsTogether(code),
    }),
    check(code, expect) {
      expect(count(code, 'LDG.E.EF.128') > 0, 'no loads of 16 bytes');
      expect(
        mostLoadsTogether(code) >= loadsTogether,
        `fewer than ${loadsTogether} loads under way together`,
      );
    },
  },
  {
    kernel: /decoder_kernelINS0_14StreamedLinear/,
    describe: describeLinear,
    architectures: ['sm_80', 'sm_90a'],
    wanted: 6, // bf16, f16 and f32; 1 and 4 rows
    columns: (code) => ({
      'LDG.E.EF.128': count(code, 'LDG.E.EF.128'),
      together: mostLoadsTogether(code),
    }),
    check(code, expect, name) {
      expect(count(code, 'LDG.E.EF.128') > 0, 'no loads of 16 bytes');
      // With one row the compiler puts products between them, of f32 most.
      const wanted = name.includes('4 rows') ? loadsTogether : name.includes('f32') ? 0 : 6;
      expect(mostLoadsTogether(code) >= wanted, `fewer than ${wanted} loads under way together`);
    },
  },
  {
    kernel: /19grouped_gemm_kernelINS0_14TensorCoreMath/,
    describe: describeTile,
    architectures: ['sm_80', 'sm_90a'],
    wanted: 12, // 3 tiles, bf16 and f16, single and dual
    columns: (code) => ({
      HMMA: count(code, 'HMMA'),
      LDSM: count(code, 'LDSM'),
      LDGSTS: count(code, 'LDGSTS'),
      between: mostBetweenProducts(code),
    }),
    check(code, expect) {
      expect(count(code, 'HMMA.16816.F32') > 0, 'no products of 16 x 8 x 16');
      expect(count(code, 'LDSM.16.M88.4') > 0, 'no loads of four matrices');
      expect(count(code, 'LDGSTS') > 0, 'no asynchronous copies');
      expect(mostBetweenProducts(code) <= mostBetween, 'products of a stage wait for other work');
    },
  },
  {
    kernel:
      /(plan|scatter|combine_latent|combine_output|shared_scale|join_splits|streamed_gemm|19grouped_gemm|hopper_gemm)_kernel/,
    describe: describeChained,
    architectures: ['sm_90a'],
    wanted: 58, // 2, 3 of 4 types, 2 of 4 types single and dual; of tiles 8 single and dual, and Hopper's 12
    columns: (code) => ({
      loads: count(beforeWait(code), 'LDG'),
      prefetches: count(beforeWait(code), 'CCTL'),
      copies: count(beforeWait(code), 'UTMALDG'),
    }),
    check(code, expect, name) {
      const before = beforeWait(code);
      const kind = aheadOfWait.find(({ of }) => of.test(name));
      const waits = kind.copies ? 2 : 1; // producer and consumers
      expect(
        count(code, 'ACQBULK') === waits && count(code, 'PREEXIT') === waits,
        `not ${waits} times a wait and a leave to begin`,
      );
      expect(
        count(before, 'PREEXIT', 'EXIT', 'ST', 'STG', 'RED', 'ATOM', 'ATOMG', 'LDGSTS', 'HGMMA', 'HMMA') ===
          0,
        'something goes before the wait',
      );
      expect(count(before, 'LDG', 'LD') <= kind.loads, 'loads go before the wait');
      expect(count(before, 'CCTL') > 0 === kind.prefetches, 'weights are (not) asked for before the wait');
      expect(count(before, 'UTMALDG') > 0 === kind.copies, 'weights are (not) copied before the wait');
    },
  },
];

const problems = [];
let checked = 0;
for (const family of families) {
  for (const architecture of family.architectures) {
    const resources = readResources(architecture);
    const kernels = [...(await readInstructions(architecture))]
      .filter(([mangled]) => family.kernel.test(mangled))
      .map(([mangled, code]) => ({ name: family.describe(mangled), code, ...resources.get(mangled) }))
      .sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }));
    console.log(`${family.kernel.source}, ${architecture}`);
    for (const { name, code, REG, STACK, LOCAL } of kernels) {
      const local = count(code, 'LDL', 'STL');
      const columns = {
        registers: REG,
        stack: STACK,
        local: LOCAL,
        ...family.columns(code),
        'LDL+STL': local,
      };
      const shown = Object.entries(columns).map(([title, value]) => `${title} ${value}`);
      console.log(`  ${name.padEnd(24)}${shown.join(', ')}`);
      const expect = (condition, message) =>
        condition || problems.push(`${name}, ${architecture}: ${message}`);
      family.check(code, expect, name, Number(REG));
      expect(local === 0 && STACK === 0 && LOCAL === 0, 'local memory');
    }
    checked += kernels.length;
    if (kernels.length !== family.wanted) {
      problems.push(
        `${kernels.length} kernels of ${family.kernel.source} in ${architecture}, not ${family.wanted}`,
      );
    }
  }
}
for (const problem of problems) console.log(`FAILED: ${problem}`);
if (problems.length === 0) console.log(`ok: ${checked} kernels looked at`);
process.exitCode = problems.length === 0 ? 0 : 1;

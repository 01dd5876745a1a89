// Feeds broken headers, indexes, configs and whole checkpoint folders to the readers. What they may do is read them or
// refuse them with BAD_CHECKPOINT or UNSUPPORTED_CHECKPOINT; what they accept must lie inside its file. Needs the built
// package.
//
//   npm run fuzz -- [--minutes 10] [--seed 1] [--package dist]
//
// Every case follows from the seed and its number. Prints one JSON object; exits with 1 after the first finding, which
// goes to test/endurance/findings/ and, mended, becomes a test in test/checkpoint/findings.test.ts.
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const { values: options } = parseArgs({
  options: {
    minutes: { type: 'string', default: '10' },
    seed: { type: 'string', default: String(Date.now() % 1e6) },
    package: { type: 'string', default: here('../../dist') },
  },
});
const load = (path) => import(pathToFileURL(resolve(options.package, path)).href);
const { openCheckpoint, inspectCheckpoint, planConversion } = await load('index.js');
const { parseHeader, parseHeaderLength } = await load('checkpoint/safetensors/header.js');
const { describeConfig } = await load('checkpoint/families/index.js');
const { ModelConfig } = await load('checkpoint/config.js');
const { parseStrictJson, stringifyLike } = await load('checkpoint/json.js');
const { parseMolaeBlock } = await load('checkpoint/latent-format.js');
const { readQuantization } = await load('checkpoint/quantization.js');

/** A case that takes longer is a finding: no file of this size may stop a server. */
const SLOW_MS = 2000;
const ALLOWED = new Set(['BAD_CHECKPOINT', 'UNSUPPORTED_CHECKPOINT']);

let state = 0;
const uniform = () => {
  state = (state + 0x6d2b79f5) >>> 0;
  let t = state;
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};
const below = (n) => Math.floor(uniform() * n);
const pick = (list) => list[below(list.length)];

// Seeds: the fixtures, and what the readers say about them.
const fixtures = here('../fixtures/families');
const seeds = [];
for (const name of await readdir(fixtures)) {
  const config = JSON.parse(await readFile(join(fixtures, name, 'config.json'), 'utf8'));
  const file = await readFile(join(fixtures, name, 'model.safetensors'));
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + headerBytes).toString());
  seeds.push({ config, file, header, dataBytes: file.length - 8 - headerBytes });
}
const block = { version: 1, method: 'stacked-svd', operators: ['gate', 'up', 'down'] };
const quantization = { quant_method: 'fp8', weight_block_size: [128, 128], fmt: 'e4m3' };

const ODD = [
  0,
  -0,
  -1,
  1,
  2,
  7,
  8,
  255,
  2 ** 31,
  2 ** 32,
  2 ** 53 - 1,
  2 ** 53,
  1e19,
  1e308,
  1.5,
  -1e-9,
  null,
  true,
  false,
  '',
  '0',
  '1',
  'F32',
  'BF16',
  'F8_E4M3',
  'I64',
  '__proto__',
  'constructor',
  '../x',
  '\ud800',
  '\u0000',
  'é',
  [],
  {},
  [0],
  [[]],
  [0, 0],
  [1, 2, 3],
  { a: 1 },
  [2 ** 53 - 1, 2 ** 53 - 1],
];
const TOKENS = [
  '{',
  '}',
  '[',
  ']',
  '"',
  ':',
  ',',
  '\\',
  '\\u',
  '\\ud800',
  'null',
  '1e999',
  '-',
  '0x1',
  '\u0000',
  '"a":1,',
  '[[[[',
  '"__metadata__":{}',
  '9'.repeat(30),
  'NaN',
  '\ufeff',
  ' '.repeat(50),
  '/**/',
  '"dtype":"F32"',
  '"shape":[0]',
];

/** A copy with a few values, keys or lengths changed, somewhere in it. */
function mutateValue(value) {
  const copy = structuredClone(value);
  for (let n = 1 + below(3); n > 0; n--) {
    let owner = copy;
    for (let depth = below(5); depth > 0; depth--) {
      const inner = Object.values(owner).filter((v) => typeof v === 'object' && v !== null);
      if (inner.length === 0) break;
      owner = pick(inner);
    }
    const keys = Object.keys(owner);
    const key = keys.length > 0 ? pick(keys) : 'x';
    const other = keys.length > 0 ? pick(keys) : 'y';
    const actions = [
      () => delete owner[key],
      () => set(owner, key, structuredClone(pick(ODD))),
      () =>
        set(
          owner,
          key,
          typeof owner[key] === 'number'
            ? owner[key] + pick([-1, 1, 0.5, 8, -8])
            : structuredClone(pick(ODD)),
        ),
      () => set(owner, String(pick(ODD)), structuredClone(owner[key] ?? 1)),
      () => set(owner, key, structuredClone(owner[other] ?? null)),
      () => Array.isArray(owner) && owner.push(structuredClone(pick(ODD))),
      () => set(owner, key, nested(below(100))),
    ];
    pick(actions)();
  }
  return copy;
}

function set(owner, key, value) {
  // An array with an index of 2^32 would be 2^32 nulls as text.
  if (Array.isArray(owner) && !(Number(key) < owner.length)) return owner.push(value);
  Object.defineProperty(owner, key, { value, enumerable: true, configurable: true, writable: true });
}

function nested(depth) {
  let value = 1;
  for (let i = 0; i < depth; i++) value = uniform() < 0.5 ? [value] : { a: value };
  return value;
}

/** Bytes changed, cut, repeated, or joined with tokens of JSON. */
function mutateBytes(bytes) {
  let result = Buffer.from(bytes);
  for (let n = 1 + below(4); n > 0; n--) {
    const at = below(result.length + 1);
    const length = below(Math.min(64, result.length - at + 1));
    const piece = result.subarray(at, at + length);
    const head = result.subarray(0, at);
    const actions = [
      () => Buffer.concat([head, result.subarray(at + length)]),
      () => Buffer.concat([head, Buffer.from(pick(TOKENS)), result.subarray(at)]),
      () => Buffer.concat([head, Buffer.from([below(256)]), result.subarray(at + 1)]),
      () => Buffer.concat([head, piece, piece, result.subarray(at + length)]),
      () => head,
      () => Buffer.concat([head, Buffer.from(Array.from({ length }, () => below(256))), result.subarray(at)]),
    ];
    result = pick(actions)();
  }
  return result;
}

/** JSON text of a value, sometimes broken afterwards. */
function text(value) {
  const bytes = Buffer.from(JSON.stringify(value));
  return uniform() < 0.3 ? mutateBytes(bytes) : bytes;
}

function check(condition, message) {
  if (!condition) throw new Error(`accepted, but ${message}`);
}

const targets = {
  async header() {
    const { header, dataBytes } = pick(seeds);
    const bytes = text(mutateValue(header));
    const fileSize = uniform() < 0.9 ? 8 + bytes.length + dataBytes : 8 + bytes.length + below(1e5);
    return [bytes, () => checkHeader(bytes, fileSize)];
  },
  /** Descriptions that fit each other but for one thing: past the first checks. */
  async tidyHeader() {
    let end = 0;
    const header = Object.fromEntries(
      Array.from({ length: below(6) }, (_, i) => {
        const [dtype, width] = pick([
          ['F32', 4],
          ['BF16', 2],
          ['U8', 1],
          ['F8_E4M3', 1],
        ]);
        const shape = Array.from({ length: below(4) }, () => below(5));
        const begin = end;
        end += width * shape.reduce((a, b) => a * b, 1);
        return [`t${i}`, { dtype, shape, data_offsets: [begin, end] }];
      }),
    );
    const bytes = text(uniform() < 0.2 ? header : mutateValue(header));
    return [bytes, () => checkHeader(bytes, 8 + bytes.length + end)];
  },
  async length() {
    const bytes = Buffer.from(Array.from({ length: below(10) }, () => pick([0, 0, 0, 1, 255, below(256)])));
    const size = pick([bytes.length, below(1e6), 1e12]);
    return [
      bytes,
      () => {
        const length = parseHeaderLength(bytes.subarray(0, 8), size, 'fuzz');
        check(length >= 0 && length + 8 <= size && length <= 1e8, `the length is ${length}`);
      },
    ];
  },
  async config() {
    const { config } = pick(seeds);
    const bytes = text(
      mutateValue({ ...config, ...(uniform() < 0.2 && { quantization_config: quantization }) }),
    );
    return [
      bytes,
      () => {
        const raw = parseStrictJson(bytes, 'fuzz');
        if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) return;
        const spec = describeConfig(raw);
        readQuantization(new ModelConfig(raw));
        check(
          spec.layers.every((l) => l < spec.numLayers),
          'a layer is past the last',
        );
        check(spec.numExperts === 0 || spec.topK <= spec.numExperts, 'K is above N');
        check(Number.isSafeInteger(spec.hiddenSize * 1), 'n is no integer');
      },
    ];
  },
  /** A config is written with what it had, to the digit. */
  async rewrite() {
    const bytes = text(mutateValue(pick(seeds).config));
    return [
      bytes,
      () => {
        const raw = parseStrictJson(bytes, 'fuzz');
        if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) return;
        const { hidden_size: _, ...rest } = raw;
        const wanted = { ...rest, model_type: 'x', added: { y: [1, 'a'] } };
        const written = stringifyLike(bytes.toString(), wanted);
        check(JSON.stringify(JSON.parse(written)) === JSON.stringify(wanted), 'another config was written');
      },
    ];
  },
  async latentConfig() {
    const { config } = pick(seeds);
    const spec = describeConfig(config);
    const groups = Object.fromEntries(
      spec.layers.map((l) => [
        l,
        [
          [0, 1, 2, 3],
          [4, 5, 6, 7],
        ],
      ]),
    );
    const bytes = text(mutateValue({ ...config, molae: { ...block, groups } }));
    return [
      bytes,
      () => {
        const raw = parseStrictJson(bytes, 'fuzz');
        if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) return;
        const parsed = parseMolaeBlock(new ModelConfig(raw), spec);
        for (const [layer, partition] of parsed.groups) {
          check(spec.layers.includes(layer), `layer ${layer} is none`);
          check(new Set(partition.flat()).size === spec.numExperts, 'the groups are no partition');
        }
      },
    ];
  },
  async folder() {
    const { config, file, header } = pick(seeds);
    const folder = await mkdtemp(join(root, 'case-'));
    const what = pick(['config', 'index', 'file', 'header', 'latent']);
    const { __metadata__: _, ...tensors } = header;
    const names = Object.keys(tensors);
    const files = new Map([['config.json', Buffer.from(JSON.stringify(config))]]);
    let shard = file;
    if (what === 'config') files.set('config.json', text(mutateValue(config)));
    if (what === 'latent') {
      const spec = describeConfig(config);
      const groups = Object.fromEntries(
        spec.layers.map((l) => [
          l,
          [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
          ],
        ]),
      );
      const latent = {
        ...config,
        model_type: 'molae',
        base_model_type: config.model_type,
        molae: { ...block, groups },
      };
      files.set('config.json', text(mutateValue(latent)));
    }
    if (what === 'file') shard = mutateBytes(file);
    if (what === 'header') {
      const bytes = text(mutateValue(header));
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(bytes.length));
      shard = Buffer.concat([length, bytes, file.subarray(8 + Number(file.readBigUInt64LE(0)))]);
    }
    const name = what === 'index' ? 'model-00001-of-00001.safetensors' : 'model.safetensors';
    files.set(name, shard);
    if (what === 'index') {
      const weightMap = Object.fromEntries(names.map((tensor) => [tensor, name]));
      files.set('model.safetensors.index.json', text(mutateValue({ metadata: {}, weight_map: weightMap })));
    }
    for (const [path, bytes] of files) await writeFile(join(folder, path), bytes);
    const readable = [...files].map(([path, bytes]) => `${path} ${bytes.toString('base64')}`).join('\n');
    return [Buffer.from(readable), () => checkFolder(folder).finally(() => rm(folder, { recursive: true }))];
  },
};

function checkHeader(bytes, fileSize) {
  const { tensors } = parseHeader(bytes, fileSize, 'fuzz');
  let end = 8 + bytes.length;
  for (const [name, { position, byteLength }] of tensors) {
    check(position === end, `${name} does not begin where the last one ends`);
    end = position + byteLength;
  }
  check(end === fileSize, 'the tensors do not end with the file');
  check(Object.getPrototypeOf({}).polluted === undefined, 'a prototype was polluted');
}

async function checkFolder(folder) {
  await inspectCheckpoint(folder);
  const checkpoint = await openCheckpoint(folder);
  try {
    const { spec } = checkpoint;
    for (const layer of spec.layers) {
      const { latentOperators } = checkpoint.layer(layer);
      for (const operator of ['gate', 'up', 'down']) {
        if (latentOperators.includes(operator)) continue;
        const bytes = await checkpoint.readExpert(layer, spec.numExperts - 1, operator);
        check(bytes.length > 0, 'an expert is empty');
      }
    }
    planConversion(spec, { groupSize: 1, latentSize: 1 });
  } finally {
    await checkpoint.close();
  }
}

const root = await mkdtemp(join(process.platform === 'linux' ? '/dev/shm' : tmpdir(), 'molae-fuzz-'));
const counts = Object.fromEntries(Object.keys(targets).map((name) => [name, { cases: 0, accepted: 0 }]));
const until = Date.now() + Number(options.minutes) * 60_000;
let finding;
try {
  for (let number = 0; Date.now() < until && finding === undefined; number++) {
    state = (Math.imul(Number(options.seed), 0x9e3779b1) ^ Math.imul(number, 0x85ebca6b)) >>> 0;
    const name = pick(Object.keys(targets));
    const [input, run] = await targets[name]();
    const started = performance.now();
    counts[name].cases++;
    try {
      await run();
      counts[name].accepted++;
    } catch (error) {
      if (!ALLOWED.has(error.code)) finding = { name, number, input, problem: String(error.stack ?? error) };
    }
    const took = performance.now() - started;
    if (took > SLOW_MS) finding ??= { name, number, input, problem: `took ${took.toFixed(0)} ms` };
  }
} finally {
  await rm(root, { recursive: true, force: true });
}
if (finding !== undefined) {
  const folder = here('findings');
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, `${finding.name}-${options.seed}-${finding.number}`), finding.input);
}
const { input: _, ...shown } = finding ?? {};
console.log(
  JSON.stringify({
    seed: Number(options.seed),
    minutes: Number(options.minutes),
    counts,
    finding: finding && shown,
  }),
);
process.exitCode = finding === undefined ? 0 : 1;

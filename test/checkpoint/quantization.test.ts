import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { inspectCheckpoint } from '../../lib/checkpoint/inspect.ts';
import type { SafetensorsDtype } from '../../lib/checkpoint/safetensors/dtype.ts';
import type { TensorEntry } from '../../lib/checkpoint/safetensors/header.ts';
import { SafetensorsFile } from '../../lib/checkpoint/safetensors/reader.ts';
import { SafetensorsWriter } from '../../lib/checkpoint/safetensors/writer.ts';
import { Shards } from '../../lib/checkpoint/shards.ts';
import { Weights } from '../../lib/checkpoint/weights.ts';
import { convertCheckpoint } from '../../lib/conversion/convert.ts';
import { openDevice } from '../../lib/device.ts';
import { native } from '../../lib/native.ts';
import { molaeError } from '../support/errors.ts';
import { fromBf16Bits, Random, toBf16Bits } from '../support/random.ts';
import { temporaryFolder } from '../support/temporary.ts';

type Json = Record<string, unknown>;
interface Stored {
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

const device = await openDevice('cpu');
afterAll(() => device.dispose());

async function writeTensors(path: string, tensors: ReadonlyMap<string, Stored>): Promise<void> {
  const writer = await SafetensorsWriter.create(
    path,
    [...tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
  );
  for (const [name, { bytes }] of tensors) await writer.write(name, bytes);
  await writer.finish();
}

describe('E4M3', () => {
  let golden: SafetensorsFile;
  beforeAll(async () => {
    golden = await SafetensorsFile.open(
      fileURLToPath(new URL('../fixtures/fp8.safetensors', import.meta.url)),
    );
  });
  afterAll(() => golden.close());

  test('every code has the value that torch gives it', async () => {
    const codes = await golden.read('codes');
    const values = new Float32Array((await golden.read('values')).slice().buffer);
    const bytes = new Uint8Array(512);
    bytes.set(codes, 256);
    native().expandE4m3(bytes, 0, 16, 16, Float32Array.of(1), 16, 16);
    const expanded = new Uint16Array(bytes.buffer);
    // bf16 holds every one of them exactly.
    values.forEach((value, i) => {
      expect(fromBf16Bits(expanded[i] as number), `code ${codes[i]}`).toEqual(value);
    });
  });

  test("a matrix in blocks that do not divide it has torch's values bit by bit, read whole or in parts", async () => {
    const folder = await temporaryFolder();
    const tensors = new Map<string, Stored>();
    for (const name of ['w.weight', 'w.weight_scale_inv', 'expanded']) {
      const { dtype, shape } = golden.tensors.get(name) as TensorEntry;
      tensors.set(name, { dtype, shape, bytes: await golden.read(name) });
    }
    await writeTensors(join(folder, 'model.safetensors'), tensors);
    await using shards = await Shards.open(folder);
    const weights = new Weights(shards, { blockRows: 16, blockCols: 24 });
    expect(weights.dtype('w.weight')).toBe('bf16');
    expect(weights.dtype('expanded')).toBe('bf16');
    const wanted = await shards.read('expanded');
    expect(await weights.read('w.weight')).toEqual(wanted);
    const rowBytes = 2 * 56;
    expect(await weights.readRange('w.weight', 7 * rowBytes, 29 * rowBytes)).toEqual(
      wanted.slice(7 * rowBytes, 36 * rowBytes),
    );
    for (const maxBytes of [1, 5 * rowBytes, 1e6]) {
      const joined = new Uint8Array(wanted.byteLength);
      for await (const { bytes, byteOffset } of weights.pieces('w.weight', maxBytes))
        joined.set(bytes, byteOffset);
      expect(joined).toEqual(wanted);
    }
    expect(() => new Weights(shards, undefined).dtype('w.weight')).toThrow(
      expect.objectContaining(molaeError('UNSUPPORTED_CHECKPOINT', 'w.weight', 'F8_E4M3')),
    );
    expect(() => new Weights(shards, { blockRows: 8, blockCols: 24 }).dtype('w.weight')).toThrow(
      expect.objectContaining(molaeError('BAD_CHECKPOINT', 'w.weight_scale_inv', '[3, 3]', '[5, 3]')),
    );
  });

  test('sizes that do not fit are refused, not read out of bounds', () => {
    const expand = (bytes: number, rows: number, cols: number, scales: number, firstRow = 0) =>
      native().expandE4m3(new Uint8Array(bytes), firstRow, rows, cols, new Float32Array(scales), 4, 4);
    expect(() => expand(63, 4, 8, 2)).toThrow(/64 bytes and 2 scales .* 63 and 2/);
    expect(() => expand(64, 4, 8, 1)).toThrow(/64 bytes and 2 scales .* 64 and 1/);
    expect(() => expand(64, 4, 8, 2, 4)).toThrow(/4 scales/);
    expect(() => expand(0, 2 ** 30, 2 ** 30, 0)).toThrow(/bytes/);
    expect(() => expand(0, 0, 0, 0)).not.toThrow();
  });
});

const N = 8;
const n = 40;
const m = 24;
const BLOCK = [16, 16] as const;

/** As DeepSeek-V3 is published: a dense layer, then MoE layers; all projections in E4M3, scales f32 or bf16. */
const CONFIG: Json = {
  model_type: 'deepseek_v3',
  hidden_size: n,
  intermediate_size: 56,
  moe_intermediate_size: m,
  n_routed_experts: N,
  n_shared_experts: 1,
  num_experts_per_tok: 2,
  num_hidden_layers: 3,
  first_k_dense_replace: 1,
  n_group: 4,
  topk_group: 2,
  hidden_act: 'silu',
  torch_dtype: 'bfloat16',
  quantization_config: {
    activation_scheme: 'dynamic',
    fmt: 'e4m3',
    quant_method: 'fp8',
    weight_block_size: BLOCK,
  },
};

/** The same model twice: quantized, and with the values that stand for it in bf16. */
function makeModel(scaleDtype: 'F32' | 'BF16'): {
  quantized: Map<string, Stored>;
  plain: Map<string, Stored>;
} {
  const random = new Random(3);
  const quantized = new Map<string, Stored>();
  const plain = new Map<string, Stored>();
  const both = (name: string, tensor: Stored) => {
    quantized.set(name, tensor);
    plain.set(name, tensor);
  };
  const half = (name: string, shape: number[], scale = 1) =>
    both(name, {
      dtype: 'BF16',
      shape,
      bytes: new Uint8Array(
        Uint16Array.from({ length: shape.reduce((a, b) => a * b) }, () => toBf16Bits(random.normal() * scale))
          .buffer,
      ),
    });
  const matrix = (name: string, rows: number, cols: number) => {
    const codes = Uint8Array.from({ length: rows * cols }, () => random.integer(256) & 0xf7); // no NaN
    const blocks = [Math.ceil(rows / BLOCK[0]), Math.ceil(cols / BLOCK[1])] as const;
    const scaleBits = Uint16Array.from({ length: blocks[0] * blocks[1] }, () =>
      toBf16Bits(1e-3 * (random.uniform() + 0.1)),
    );
    const scales = Float32Array.from(scaleBits, fromBf16Bits);
    const values = Uint16Array.from(codes, (code, i) => {
      const exponent = (code >> 3) & 15;
      const mantissa = code & 7;
      const magnitude = exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10);
      const block =
        Math.floor(Math.floor(i / cols) / BLOCK[0]) * blocks[1] + Math.floor((i % cols) / BLOCK[1]);
      return toBf16Bits(Math.fround((code & 128 ? -1 : 1) * magnitude * (scales[block] as number)));
    });
    quantized.set(name, { dtype: 'F8_E4M3', shape: [rows, cols], bytes: codes });
    const stored = scaleDtype === 'F32' ? scales : scaleBits;
    quantized.set(`${name}_scale_inv`, {
      dtype: scaleDtype,
      shape: [...blocks],
      bytes: new Uint8Array(stored.buffer),
    });
    plain.set(name, { dtype: 'BF16', shape: [rows, cols], bytes: new Uint8Array(values.buffer) });
  };
  half('model.embed_tokens.weight', [10, n]);
  matrix('model.layers.0.mlp.up_proj.weight', 56, n);
  for (const layer of [1, 2]) {
    const prefix = `model.layers.${layer}.mlp`;
    half(`${prefix}.gate.weight`, [N, n]);
    both(`${prefix}.gate.e_score_correction_bias`, {
      dtype: 'F32',
      shape: [N],
      bytes: new Uint8Array(Float32Array.from({ length: N }, () => random.normal() * 0.1).buffer),
    });
    for (const owner of ['shared_experts', ...Array.from({ length: N }, (_, e) => `experts.${e}`)]) {
      matrix(`${prefix}.${owner}.gate_proj.weight`, m, n);
      matrix(`${prefix}.${owner}.up_proj.weight`, m, n);
      matrix(`${prefix}.${owner}.down_proj.weight`, n, m);
    }
  }
  return { quantized, plain };
}

async function writeModel(config: Json, tensors: ReadonlyMap<string, Stored>): Promise<string> {
  const folder = join(await temporaryFolder(), 'model');
  await mkdir(folder);
  await writeFile(join(folder, 'config.json'), JSON.stringify(config));
  await writeTensors(join(folder, 'model.safetensors'), tensors);
  return folder;
}

const { quantization_config: _, ...PLAIN_CONFIG } = CONFIG;

describe.each(['F32', 'BF16'] as const)('a DeepSeek-V3 with %s block scales', (scaleDtype) => {
  const { quantized, plain } = makeModel(scaleDtype);

  test('opens and computes as the expanded one does', async () => {
    const path = await writeModel(CONFIG, quantized);
    await using a = await openCheckpoint(path);
    await using b = await openCheckpoint(await writeModel(PLAIN_CONFIG, plain));
    expect(a.layer(1).dtypes).toEqual({ gate: 'bf16', up: 'bf16', down: 'bf16' });
    expect(a.expertParameters).toBe(b.expertParameters);
    expect(await a.readExpert(2, 7, 'down')).toEqual(await b.readExpert(2, 7, 'down'));
    expect(await inspectCheckpoint(path)).toMatchObject({ supported: true, dtypes: { F8_E4M3: 1 + 2 * 27 } });
    const x = device.tensor(
      'f32',
      new Float32Array(5 * n).map((_, i) => Math.sin(i)),
      [5, n],
    );
    using quantizedBlock = await a.loadMoeBlock(1, { device });
    using plainBlock = await b.loadMoeBlock(1, { device });
    expect(await (await quantizedBlock.forward(x)).toFloat32()).toEqual(
      await (await plainBlock.forward(x)).toFloat32(),
    );
  });

  test('converts to the same factors; what stays is copied as it is, quantized', async () => {
    const folder = await temporaryFolder();
    const options = { groupSize: 4, latentSize: 16, device } as const;
    const one = await convertCheckpoint(await writeModel(CONFIG, quantized), join(folder, 'a'), options);
    const two = await convertCheckpoint(await writeModel(PLAIN_CONFIG, plain), join(folder, 'b'), options);
    expect(one.layers).toEqual(two.layers);
    expect(one.expertParameters).toEqual(two.expertParameters);
    await using a = await openCheckpoint(join(folder, 'a'));
    await using b = await openCheckpoint(join(folder, 'b'));
    expect(one.parameters.after).toBe(a.parameters);
    expect(a.config).toMatchObject({ model_type: 'molae', quantization_config: { quant_method: 'fp8' } });
    for (const name of a.expertTensors) expect(await a.shards.read(name)).toEqual(await b.shards.read(name));
    expect([...a.shards.tensors.keys()].filter((name) => name.includes('.experts.'))).toEqual([]);
    const kept = 'model.layers.0.mlp.up_proj.weight';
    expect(await a.shards.read(kept)).toEqual(quantized.get(kept)?.bytes);
    expect(a.shards.tensors.has(`${kept}_scale_inv`)).toBe(true);
  });

  test('converts to a dense checkpoint in which nothing is quantized any more', async () => {
    const output = join(await temporaryFolder(), 'dense');
    const source = await writeModel(CONFIG, quantized);
    await convertCheckpoint(source, output, { groupSize: 4, latentSize: n, device, format: 'dense' });
    await using dense = await openCheckpoint(output);
    expect(dense.config).toEqual(PLAIN_CONFIG);
    expect([...dense.shards.tensors.keys()].sort()).toEqual([...plain.keys()].sort());
    expect((await inspectCheckpoint(output)).dtypes).toEqual({ BF16: 1 + 1 + 2 + 2 * 27, F32: 2 });
    const kept = 'model.layers.2.mlp.shared_experts.down_proj.weight';
    expect(await dense.shards.read(kept)).toEqual(plain.get(kept)?.bytes);
  });
});

describe('quantized checkpoints that molae cannot read are named', () => {
  const { quantized } = makeModel('F32');
  const expert = 'model.layers.1.mlp.experts.3.up_proj.weight';
  test.each<[string, Json, string, string[]]>([
    ['another method', { quant_method: 'gptq', bits: 4 }, 'UNSUPPORTED_CHECKPOINT', ['gptq']],
    ['fp8 without blocks', { quant_method: 'fp8' }, 'UNSUPPORTED_CHECKPOINT', ['fp8', 'weight_block_size']],
    [
      'another format of the bits',
      { quant_method: 'fp8', weight_block_size: BLOCK, fmt: 'e5m2' },
      'UNSUPPORTED_CHECKPOINT',
      ['fmt', 'e5m2'],
    ],
    ['senseless blocks', { quant_method: 'fp8', weight_block_size: [0, 16] }, 'BAD_CHECKPOINT', ['[0, 16]']],
    [
      'blocks of another size',
      { quant_method: 'fp8', weight_block_size: [8, 8] },
      'BAD_CHECKPOINT',
      ['_scale_inv'],
    ],
  ])('%s', async (_, quantization, code, words) => {
    const path = await writeModel({ ...CONFIG, quantization_config: quantization }, quantized);
    await expect(openCheckpoint(path)).rejects.toMatchObject(molaeError(code as 'IO', ...words));
  });

  test('an expert without scales, and scales without an expert that needs them', async () => {
    const without = new Map(quantized);
    without.delete(`${expert}_scale_inv`);
    await expect(openCheckpoint(await writeModel(CONFIG, without))).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', `${expert}_scale_inv`),
    );
    const { plain } = makeModel('F32');
    const mixed = new Map(quantized).set(expert, plain.get(expert) as Stored);
    await expect(openCheckpoint(await writeModel(CONFIG, mixed))).rejects.toMatchObject(
      molaeError('UNSUPPORTED_CHECKPOINT', `${expert}_scale_inv`),
    );
  });
});

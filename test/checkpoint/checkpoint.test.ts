import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { Checkpoint, openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { ModelConfig } from '../../lib/checkpoint/config.ts';
import { describeConfig, FAMILIES } from '../../lib/checkpoint/families/index.ts';
import type { Family, MoeSpec } from '../../lib/checkpoint/family.ts';
import { inspectCheckpoint } from '../../lib/checkpoint/inspect.ts';
import {
  buildLatentConfig,
  latentFactorShapes,
  latentTensorName,
} from '../../lib/checkpoint/latent-format.ts';
import { verifyLayers } from '../../lib/checkpoint/layers.ts';
import type { TensorDeclaration } from '../../lib/checkpoint/safetensors/writer.ts';
import { Shards } from '../../lib/checkpoint/shards.ts';
import { Weights } from '../../lib/checkpoint/weights.ts';
import { molaeError } from '../support/errors.ts';
import { TINY } from '../support/fixtures.ts';
import { temporaryFolder } from '../support/temporary.ts';
import { writeCounting } from './support.ts';

type Json = Record<string, unknown>;

const N = 4;
const n = 8;
const m = 6;

/** A Qwen3-MoE of two layers with n 8, m 6, N 4, K 2. */
const CONFIG: Json = {
  model_type: 'qwen3_moe',
  hidden_size: n,
  moe_intermediate_size: m,
  num_experts: N,
  num_experts_per_tok: 2,
  num_hidden_layers: 2,
  hidden_act: 'silu',
  norm_topk_prob: true,
};

const PREFIXES = ['model.layers.0.mlp', 'model.layers.1.mlp'];

function denseTensors(): TensorDeclaration[] {
  const list: TensorDeclaration[] = [{ name: 'lm_head.weight', dtype: 'F32', shape: [10, n] }];
  for (const prefix of PREFIXES) {
    list.push({ name: `${prefix}.gate.weight`, dtype: 'BF16', shape: [N, n] });
    for (let e = 0; e < N; e++) {
      for (const operator of ['gate', 'up', 'down']) {
        const shape = operator === 'down' ? [n, m] : [m, n];
        list.push({ name: `${prefix}.experts.${e}.${operator}_proj.weight`, dtype: 'BF16', shape });
      }
    }
  }
  return list;
}

const GROUPS = [[2, 0, 1], [3]];

/** The same model with gate and up (one B) and down factored, in ragged groups, with ragged latent sizes. */
function latentTensors(sharedGateUp: boolean): TensorDeclaration[] {
  const list = denseTensors().filter(({ name }) => !name.includes('.experts.'));
  for (const prefix of PREFIXES) {
    for (const [g, group] of GROUPS.entries()) {
      const latentSizes = { gate: 3 + g, up: 3 + g, down: 2 };
      const sizes = {
        hiddenSize: n,
        intermediateSize: m,
        groupSize: group.length,
        latentSizes,
        sharedGateUp,
      };
      for (const [factor, shape] of latentFactorShapes(sizes)) {
        list.push({ name: latentTensorName(prefix, g, factor), dtype: 'BF16', shape });
      }
    }
  }
  return list;
}

const BLOCK = {
  version: 1,
  method: 'stacked-svd',
  operators: ['gate', 'up', 'down'],
  groups: new Map([
    [0, GROUPS],
    [1, GROUPS],
  ]),
} as const;
const LATENT_CONFIG = buildLatentConfig(CONFIG, BLOCK);

async function write(config: unknown, tensors: readonly TensorDeclaration[]): Promise<string> {
  const folder = await temporaryFolder();
  await writeFile(join(folder, 'config.json'), typeof config === 'string' ? config : JSON.stringify(config));
  await writeCounting(join(folder, 'model.safetensors'), tensors);
  return folder;
}

const without = (name: string) => denseTensors().filter((tensor) => tensor.name !== name);
const changed = (name: string, change: Partial<TensorDeclaration>, list = denseTensors()) => {
  expect(list.some((tensor) => tensor.name === name)).toBe(true);
  return list.map((tensor) => (tensor.name === name ? { ...tensor, ...change } : tensor));
};

describe('the trained fixture', () => {
  test('opens with its sizes', async () => {
    const model = await openCheckpoint(TINY);
    expect(model.format).toBe('dense');
    expect(model.family.modelType).toBe('qwen2_moe');
    expect(model.spec).toEqual({
      hiddenSize: 256,
      intermediateSize: 96,
      numExperts: 16,
      topK: 4,
      activation: 'silu',
      layers: [0, 1, 2, 3],
      numLayers: 4,
      router: { scoring: 'softmax', topK: 4, renormalize: false },
      sharedExpert: { intermediateSize: 192, gated: true },
    });
    expect(model.expertParameters).toBe(4 * 16 * 3 * 96 * 256);
    expect(model.byteLength).toBe(16427520);
    expect(model.parameters).toBe(16427520 / 2);
    expect(model.layer(3)).toMatchObject({ dtypes: { gate: 'bf16', up: 'bf16', down: 'bf16' }, groups: [] });
    expect(() => model.layer(4)).toThrow(
      expect.objectContaining(molaeError('INVALID_ARGUMENT', '0, 1, 2, 3', '4')),
    );
    const down = await model.readExpert(2, 15, 'down');
    expect(down).toEqual(await model.shards.read('model.layers.2.mlp.experts.15.down_proj.weight'));
    await expect(model.readExpert(2, 16, 'down')).rejects.toMatchObject(molaeError('INVALID_ARGUMENT', '16'));
    await expect(model.readExpert(2, 0, 'foo' as 'down')).rejects.toMatchObject(
      molaeError('INVALID_ARGUMENT', 'one of gate, up, down for operator but received "foo"'),
    );
    await expect(model.readFactor(2, 0, 'down_a')).rejects.toMatchObject(
      molaeError('INVALID_ARGUMENT', 'Layer 2 has no latent factors'),
    );
    await model.close();
  });

  test('inspects with the same sizes', async () => {
    expect(await inspectCheckpoint(TINY)).toEqual({
      path: TINY,
      family: 'qwen2_moe',
      format: 'dense',
      supported: true,
      unsupported: [],
      runs: true,
      warnings: [],
      hiddenSize: 256,
      intermediateSize: 96,
      numExperts: 16,
      topK: 4,
      numLayers: 4,
      moeLayers: [0, 1, 2, 3],
      tensors: 4 * (48 + 1 + 4 + 2 + 7) + 3,
      files: 2,
      bytes: 16427520,
      parameters: 8213760,
      expertParameters: 4718592,
      dtypes: { BF16: 251 },
    });
  });

  test('with a shared expert of another width in its config is refused', async () => {
    const folder = join(await temporaryFolder(), 'copy');
    await cp(TINY, folder, { recursive: true });
    const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as Json;
    await writeFile(
      join(folder, 'config.json'),
      JSON.stringify({ ...config, shared_expert_intermediate_size: 96 }),
    );
    await expect(openCheckpoint(folder)).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'shared_expert.gate_proj', '[192, 256]', '[96, 256]'),
    );
  });
});

describe('families', () => {
  const layersOf = (fields: Json) => describeConfig({ ...CONFIG, num_hidden_layers: 6, ...fields }).layers;

  test('qwen: layers by decoder_sparse_step and mlp_only_layers, counted from one', () => {
    expect(layersOf({})).toEqual([0, 1, 2, 3, 4, 5]);
    expect(layersOf({ decoder_sparse_step: 2 })).toEqual([1, 3, 5]);
    expect(layersOf({ decoder_sparse_step: 2, mlp_only_layers: [3, 0] })).toEqual([1, 5]);
    expect(layersOf({ num_experts: 0 })).toEqual([]);
  });

  test('qwen: norm_topk_prob is false by default', () => {
    const { norm_topk_prob: _, ...rest } = CONFIG;
    expect(describeConfig(rest).router.renormalize).toBe(false);
    expect(describeConfig(CONFIG).router.renormalize).toBe(true);
  });

  test('qwen: num_local_experts, as transformers 5 writes it, stands for num_experts', () => {
    const { num_experts: _, ...rest } = CONFIG;
    expect(describeConfig({ ...rest, num_local_experts: 8 }).numExperts).toBe(8);
  });

  test.each<[string, Json, string[]]>([
    ['a missing size', { hidden_size: undefined }, ['hidden_size', 'missing']],
    ['null for a size', { hidden_size: null }, ['hidden_size', 'missing']],
    ['a size that is text', { hidden_size: '8' }, ['hidden_size', '"8"', 'positive integer']],
    ['a fractional size', { moe_intermediate_size: 1.5 }, ['moe_intermediate_size', '1.5']],
    ['no experts per token', { num_experts_per_tok: 0 }, ['num_experts_per_tok', '0']],
    ['more experts per token than there are', { num_experts_per_tok: 5 }, ['num_experts_per_tok', '5', '4']],
    ['a number for a boolean', { norm_topk_prob: 1 }, ['norm_topk_prob', '1', 'true or false']],
    ['a number for a list', { mlp_only_layers: 3 }, ['mlp_only_layers', '3']],
    ['text in a list', { mlp_only_layers: ['3'] }, ['mlp_only_layers', '"3"']],
    ['a step of zero', { decoder_sparse_step: 0 }, ['decoder_sparse_step', '0']],
    ['more layers than memory', { num_hidden_layers: 1e12 }, ['num_hidden_layers', '1000000000000']],
  ])('%s is refused', (_, fields, words) => {
    const config: Json = { ...CONFIG, ...fields };
    expect(() => describeConfig(config)).toThrow(
      expect.objectContaining(molaeError('BAD_CHECKPOINT', 'config.json', ...words)),
    );
  });

  test('an unknown activation and an unknown family list what is known', () => {
    const refused = (...words: string[]) =>
      expect.objectContaining(molaeError('UNSUPPORTED_CHECKPOINT', ...words));
    expect(() => describeConfig({ ...CONFIG, hidden_act: 'tanh' })).toThrow(
      refused('hidden_act', '"tanh"', 'silu'),
    );
    expect(() => describeConfig({ ...CONFIG, model_type: 'gpt2' })).toThrow(
      refused('"gpt2"', ...FAMILIES.keys()),
    );
    expect(() => describeConfig({ ...CONFIG, model_type: 'constructor' })).toThrow(refused('"constructor"'));
  });

  test('one with stacked, fused experts needs no more than its own slices', async () => {
    // As Granite-MoE stores them: gate and up of all experts in one tensor [N, 2m, n].
    const base = FAMILIES.get('qwen3_moe') as Family;
    const stacked: Family = {
      ...base,
      expertTensor: (layer, _, operator) =>
        `${base.expertsPrefix(layer)}.experts.${operator === 'down' ? 'down_proj' : 'gate_up_proj'}`,
      expertSlice: (_, expert, operator) =>
        operator === 'down'
          ? { shape: [N, n, m], elementOffset: expert * n * m }
          : { shape: [N, 2 * m, n], elementOffset: (2 * expert + (operator === 'up' ? 1 : 0)) * m * n },
    };
    const tensors = denseTensors().filter(({ name }) => !name.includes('.experts.'));
    for (const prefix of PREFIXES) {
      tensors.push({ name: `${prefix}.experts.gate_up_proj`, dtype: 'BF16', shape: [N, 2 * m, n] });
      tensors.push({ name: `${prefix}.experts.down_proj`, dtype: 'BF16', shape: [N, n, m] });
    }
    const path = await write(CONFIG, tensors);
    const shards = await Shards.open(path);
    const spec = describeConfig(CONFIG) as MoeSpec;
    const weights = new Weights(shards, undefined);
    const verified = verifyLayers(shards, weights, stacked, spec, undefined);
    const config = new ModelConfig(CONFIG);
    const parts = { path, config, family: stacked, spec, molae: undefined, shards, weights, verified };
    const model = new Checkpoint(parts);
    expect(model.expertParameters).toBe(2 * N * 3 * m * n);
    const data = await shards.read(`${PREFIXES[0]}.experts.gate_up_proj`);
    const matrixBytes = 2 * m * n;
    const place = 2 * (N - 1) + 1;
    const up = await model.readExpert(0, N - 1, 'up');
    expect(up).toEqual(data.subarray(place * matrixBytes, (place + 1) * matrixBytes));
    expect(up).not.toEqual(await model.readExpert(0, N - 1, 'gate'));
    await model.close();
  });
});

describe('dense checkpoints that lie are refused', () => {
  const expert = 'model.layers.1.mlp.experts.2.up_proj.weight';
  const router = 'model.layers.1.mlp.gate.weight';
  test.each<[string, TensorDeclaration[], string, string[]]>([
    ['an expert is missing', without(expert), 'BAD_CHECKPOINT', [expert]],
    [
      'an expert is transposed',
      changed(expert, { shape: [n, m] }),
      'BAD_CHECKPOINT',
      [expert, '[8, 6]', '[6, 8]'],
    ],
    ['an expert has one dimension', changed(expert, { shape: [n * m] }), 'BAD_CHECKPOINT', [expert, '[48]']],
    [
      'an expert is not floating-point',
      changed(expert, { dtype: 'I8' }),
      'UNSUPPORTED_CHECKPOINT',
      [expert, 'I8'],
    ],
    [
      'an expert is of another dtype',
      changed(expert, { dtype: 'F32' }),
      'UNSUPPORTED_CHECKPOINT',
      [expert, 'f32', 'bf16'],
    ],
    ['the router is missing', without(router), 'BAD_CHECKPOINT', [router]],
    [
      'the router has other experts',
      changed(router, { shape: [N + 1, n] }),
      'BAD_CHECKPOINT',
      [router, '[5, 8]'],
    ],
    [
      'there is one expert more',
      [...denseTensors(), { name: `${PREFIXES[0]}.experts.4.up_proj.weight`, dtype: 'BF16', shape: [m, n] }],
      'UNSUPPORTED_CHECKPOINT',
      ['experts.4'],
    ],
    [
      'experts have biases',
      [...denseTensors(), { name: `${PREFIXES[0]}.experts.0.up_proj.bias`, dtype: 'BF16', shape: [m] }],
      'UNSUPPORTED_CHECKPOINT',
      ['up_proj.bias'],
    ],
  ])('%s', async (_, tensors, code, words) => {
    await expect(openCheckpoint(await write(CONFIG, tensors))).rejects.toMatchObject(
      molaeError(code as 'IO', ...words),
    );
  });

  test('quantized weights and models without MoE layers are named as unsupported', async () => {
    const open = async (fields: Json) =>
      openCheckpoint(await write({ ...CONFIG, ...fields }, denseTensors()));
    await expect(open({ quantization_config: { quant_method: 'fp8' } })).rejects.toMatchObject(
      molaeError('UNSUPPORTED_CHECKPOINT', 'quantization_config', 'fp8'),
    );
    await expect(open({ decoder_sparse_step: 7 })).rejects.toMatchObject(
      molaeError('UNSUPPORTED_CHECKPOINT', 'MoE layer'),
    );
  });

  test('config.json: missing, no JSON, no object, too large, a field twice', async () => {
    await expect(openCheckpoint(await temporaryFolder())).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'config.json'),
    );
    for (const text of ['{', '7', `"${'x'.repeat(17 * 1024 * 1024)}"`, '{"hidden_size":1,"hidden_size":2}']) {
      const open = openCheckpoint(await write(text, []));
      await expect(open).rejects.toMatchObject(molaeError('BAD_CHECKPOINT', 'config.json'));
    }
  });
});

describe('latent checkpoints', () => {
  test.each([false, true])(
    'open with groups and latent sizes read off the shapes (shared gate/up: %s)',
    async (shared) => {
      const model = await openCheckpoint(await write(LATENT_CONFIG, latentTensors(shared)));
      expect(model.format).toBe('latent');
      expect(model.family.modelType).toBe('qwen3_moe');
      expect(model.molae).toEqual(BLOCK);
      expect(model.layer(1).groups).toEqual([
        { experts: [2, 0, 1], latentSizes: { gate: 3, up: 3, down: 2 }, sharedGateUp: shared },
        { experts: [3], latentSizes: { gate: 4, up: 4, down: 2 }, sharedGateUp: shared },
      ]);
      const b = shared ? 1 : 2;
      expect(model.expertParameters).toBe(2 * (3 * m * 8 + m * 10 + b * 3 * n + b * 4 * n + 2 * 2 * n));
      expect((await model.readFactor(1, 0, 'down_a')).byteLength).toBe(2 * 3 * 2 * m);
      await expect(model.readExpert(1, 0, 'gate')).rejects.toMatchObject(
        molaeError('INVALID_ARGUMENT', 'readFactor'),
      );
      await expect(model.readFactor(1, 2, 'down_a')).rejects.toMatchObject(
        molaeError('INVALID_ARGUMENT', 'group'),
      );
      const missing = shared ? 'up_b' : 'gate_up_b';
      await expect(model.readFactor(1, 0, missing)).rejects.toMatchObject(
        molaeError(
          'INVALID_ARGUMENT',
          shared
            ? 'one of gate_a, gate_up_b, up_a, down_a, down_b'
            : 'one of gate_a, gate_b, up_a, up_b, down_a',
        ),
      );
      const report = await inspectCheckpoint(model.path);
      expect(report).toMatchObject({
        format: 'latent',
        family: 'qwen3_moe',
        supported: true,
        expertParameters: model.expertParameters,
      });
      expect(report.latent).toEqual({
        method: 'stacked-svd',
        operators: ['gate', 'up', 'down'],
        sharedGateUp: shared,
        groupSizes: [1, 3],
        consecutiveGroups: false,
        latentSizes: { gate: [3, 4], up: [3, 4], down: [2] },
      });
      await model.close();
    },
  );

  test('may share one B of gate and up that is wider than min(n, k·m), for it has twice the rows', async () => {
    const wide = (r: number) => {
      const list = latentTensors(true).map((tensor) => {
        if (tensor.name.endsWith('1.mlp.latent_experts.1.gate_up_b')) return { ...tensor, shape: [r, n] };
        return /1\.mlp\.latent_experts\.1\.(gate|up)_a$/.test(tensor.name)
          ? { ...tensor, shape: [1, m, r] }
          : tensor;
      });
      return write(LATENT_CONFIG, list);
    };
    const model = await openCheckpoint(await wide(m + 1));
    expect(model.layer(1).groups[1]?.latentSizes).toEqual({ gate: m + 1, up: m + 1, down: 2 });
    await model.close();
    await expect(openCheckpoint(await wide(n + 1))).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', '1 to 8'),
    );
  });

  test('keep the original tensors of operators that were not factored', async () => {
    const config = buildLatentConfig(CONFIG, { ...BLOCK, operators: ['gate', 'up'] });
    const downs = denseTensors().filter(({ name }) => name.includes('down_proj'));
    const tensors = [...latentTensors(false).filter(({ name }) => !name.includes('.down_')), ...downs];
    const model = await openCheckpoint(await write(config, tensors));
    expect(model.layer(0).latentOperators).toEqual(['gate', 'up']);
    expect((await model.readExpert(0, 3, 'down')).byteLength).toBe(2 * m * n);
    await model.close();
    const missing = write(
      config,
      tensors.filter(({ name }) => !name.includes('1.mlp.experts.3.down_proj')),
    );
    await expect(openCheckpoint(await missing)).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'experts.3.down_proj'),
    );
  });

  const name = `${PREFIXES[1]}.latent_experts.0`;
  const change = (factor: string, shape: number[]) =>
    changed(`${name}.${factor}`, { shape }, latentTensors(false));
  test.each<[string, TensorDeclaration[], string[]]>([
    ['a factor is missing', latentTensors(false).filter((t) => t.name !== `${name}.up_a`), [`${name}.up_a`]],
    [
      'a shared factor is missing',
      latentTensors(false).filter((t) => t.name !== `${name}.up_b`),
      [`${name}.up_b`],
    ],
    ['a factor has other experts', change('up_a', [2, m, 3]), [`${name}.up_a`, '[2, 6, 3]', '[3, 6, 3]']],
    ['the factors have different latent sizes', change('up_b', [4, n]), [`${name}.up_a`]],
    ['a latent size is 0', change('up_b', [0, n]), [`${name}.up_b`, '[0, 8]']],
    ['a latent size passes min(n, k·m)', change('down_b', [n, n + 1]), [`${name}.down_b`, '1 to 8']],
    ['a shared factor is for another n', change('up_b', [3, n + 1]), [`${name}.up_b`, '[3, 9]']],
  ])('that lie are refused: %s', async (_, tensors, words) => {
    await expect(openCheckpoint(await write(LATENT_CONFIG, tensors))).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', ...words),
    );
  });

  test('with both forms of the shared factor, or experts left over, are refused', async () => {
    const both = [...latentTensors(true), { name: `${name}.up_b`, dtype: 'BF16', shape: [3, n] } as const];
    await expect(openCheckpoint(await write(LATENT_CONFIG, both))).rejects.toMatchObject(
      molaeError('UNSUPPORTED_CHECKPOINT', `${name}.up_b`),
    );
    const left = [
      ...latentTensors(true),
      { name: `${PREFIXES[0]}.experts.0.up_proj.weight`, dtype: 'BF16', shape: [m, n] } as const,
    ];
    await expect(openCheckpoint(await write(LATENT_CONFIG, left))).rejects.toMatchObject(
      molaeError('UNSUPPORTED_CHECKPOINT', 'experts.0.up_proj'),
    );
  });

  const block = LATENT_CONFIG.molae as Json;
  test.each<[string, Json, string[]]>([
    ['no block', { molae: undefined }, ['molae', 'missing']],
    ['a block that is no object', { molae: [] }, ['molae']],
    ['no version', { molae: { ...block, version: undefined } }, ['molae.version', 'undefined']],
    ['a version that is text', { molae: { ...block, version: '1' } }, ['molae.version', '"1"']],
    ['a method that is no text', { molae: { ...block, method: 1 } }, ['molae.method']],
    ['no operators', { molae: { ...block, operators: [] } }, ['molae.operators']],
    [
      'an unknown operator',
      { molae: { ...block, operators: ['gate', 'router'] } },
      ['molae.operators', '"router"'],
    ],
    ['an operator twice', { molae: { ...block, operators: ['gate', 'gate'] } }, ['molae.operators']],
    ['groups that are no object', { molae: { ...block, groups: [GROUPS, GROUPS] } }, ['molae.groups']],
    ['no groups', { molae: { ...block, groups: {} } }, ['molae.groups', 'empty']],
    ['a layer that is none', { molae: { ...block, groups: { 2: GROUPS } } }, ['molae.groups', '"2"']],
    ['a layer written oddly', { molae: { ...block, groups: { '00': GROUPS } } }, ['molae.groups', '"00"']],
    ['an empty group', { molae: { ...block, groups: { 0: [[0, 1, 2, 3], []] } } }, ['layer 0', 'group 1']],
    [
      'an expert twice',
      {
        molae: {
          ...block,
          groups: {
            0: [
              [0, 1],
              [1, 2, 3],
            ],
          },
        },
      },
      ['layer 0', 'expert 1'],
    ],
    [
      'an expert missing',
      { molae: { ...block, groups: { 0: [[0, 1], [3]] } } },
      ['layer 0', 'expert 2', '3 of the 4'],
    ],
    ['an expert past N', { molae: { ...block, groups: { 0: [[0, 1, 2, 4]] } } }, ['layer 0', '4']],
    ['a fractional expert', { molae: { ...block, groups: { 0: [[0, 1, 2, 2.5]] } } }, ['layer 0', '2.5']],
    ['no base family', { base_model_type: undefined }, ['base_model_type', 'missing']],
    ['itself as its base', { base_model_type: 'molae' }, ['base_model_type', 'molae']],
  ])('with a bad config are refused: %s', async (_, fields, words) => {
    const folder = await write({ ...LATENT_CONFIG, ...fields }, latentTensors(true));
    await expect(openCheckpoint(folder)).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'config.json', ...words),
    );
  });

  test('may group experts otherwise in each layer; a partition that fits another layer only is refused', async () => {
    const groups = { 0: GROUPS, 1: [[3, 1, 0], [2]] };
    const folder = await write({ ...LATENT_CONFIG, molae: { ...block, groups } }, latentTensors(true));
    await using model = await openCheckpoint(folder);
    for (const layer of [0, 1] as const)
      expect(model.layer(layer).groups.map(({ experts }) => experts)).toEqual(groups[layer]);
    // Factors have as many experts as their group.
    for (const [partition, ...words] of [
      [
        [
          [3, 1],
          [0, 2],
        ],
        'layers.1',
        'latent_experts.0',
      ],
      [[[3], [0, 1, 2]], 'layers.1', 'latent_experts.0'],
      [[[3, 1, 0, 2]], 'layers.1', 'latent_experts.0'],
      [[[3, 1, 0], [2], []], 'layer 1', 'group 2'],
    ] as const) {
      const damaged = { ...LATENT_CONFIG, molae: { ...block, groups: { 0: GROUPS, 1: partition } } };
      await expect(openCheckpoint(await write(damaged, latentTensors(true)))).rejects.toMatchObject(
        molaeError('BAD_CHECKPOINT', ...words),
      );
    }
  });

  test('that lost the partition of a layer are refused with the layer, not taken for dense there', async () => {
    const damaged = { ...LATENT_CONFIG, molae: { ...block, groups: { 0: GROUPS } } };
    await expect(openCheckpoint(await write(damaged, latentTensors(true)))).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'layer 1', 'none of its experts', `${PREFIXES[1]}.latent_experts.0`),
    );
  });

  test('of a later version are unsupported', async () => {
    const folder = await write({ ...LATENT_CONFIG, molae: { ...block, version: 2 } }, latentTensors(true));
    await expect(openCheckpoint(folder)).rejects.toMatchObject(
      molaeError('UNSUPPORTED_CHECKPOINT', 'version is 2'),
    );
    expect(await inspectCheckpoint(folder)).toMatchObject({
      supported: false,
      hiddenSize: n,
      moeLayers: [0, 1],
    });
  });

  test('name their source as base_model_type, also when converted twice', () => {
    expect(LATENT_CONFIG).toMatchObject({
      model_type: 'molae',
      base_model_type: 'qwen3_moe',
      hidden_size: n,
    });
    expect(buildLatentConfig(LATENT_CONFIG, BLOCK).base_model_type).toBe('qwen3_moe');
  });
});

describe('inspectCheckpoint', () => {
  test('reports what it can of an unknown family', async () => {
    const config = {
      model_type: 'strange_moe',
      text_config: { hidden_size: n, n_routed_experts: N, num_experts_per_tok: 2 },
    };
    const shared = {
      name: 'model.layers.0.mlp.shared_experts.up_proj.weight',
      dtype: 'F32',
      shape: [m, n],
    } as const;
    const folder = await write(config, [...denseTensors(), shared]);
    await expect(openCheckpoint(folder)).rejects.toMatchObject(
      molaeError('UNSUPPORTED_CHECKPOINT', '"strange_moe"', 'qwen2_moe'),
    );
    const report = await inspectCheckpoint(folder);
    expect(report).toMatchObject({
      family: 'strange_moe',
      supported: false,
      hiddenSize: n,
      intermediateSize: null,
      numExperts: N,
      topK: 2,
      moeLayers: [0, 1],
      expertParameters: 2 * N * 3 * m * n,
      parameters: 2 * N * 3 * m * n + 2 * N * n + 10 * n + m * n,
      dtypes: { BF16: 2 * (3 * N + 1), F32: 2 },
    });
    expect(report.unsupported.join()).toContain('strange_moe');
  });

  test('gives the reason for what is unsupported in a known family, and fails on what is broken', async () => {
    const quantized = await write(
      { ...CONFIG, quantization_config: { quant_method: 'fp8' } },
      denseTensors(),
    );
    const report = await inspectCheckpoint(quantized);
    expect(report).toMatchObject({ supported: false, numExperts: N, expertParameters: 2 * N * 3 * m * n });
    expect(report.unsupported.join()).toContain('fp8');
    const broken = await write(CONFIG, without('model.layers.0.mlp.experts.0.up_proj.weight'));
    await expect(inspectCheckpoint(broken)).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'experts.0.up_proj'),
    );
  });

  test('fails on a folder without weights', async () => {
    const folder = join(await temporaryFolder(), 'empty');
    await mkdir(folder);
    await writeFile(join(folder, 'config.json'), JSON.stringify(CONFIG));
    await expect(inspectCheckpoint(folder)).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'safetensors'),
    );
  });
});

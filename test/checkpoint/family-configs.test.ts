import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { ModelConfig } from '../../lib/checkpoint/config.ts';
import { describeConfig, describeDecoder } from '../../lib/checkpoint/families/index.ts';
import { molaeError } from '../support/errors.ts';

type Json = Record<string, unknown>;

async function configOf(folder: string): Promise<Json> {
  const path = fileURLToPath(new URL(`../fixtures/families/${folder}/config.json`, import.meta.url));
  return JSON.parse(await readFile(path, 'utf8')) as Json;
}

const decoderOf = async (folder: string, fields: Json = {}) =>
  describeDecoder(new ModelConfig({ ...(await configOf(folder)), ...fields }));

const described = async (folder: string, fields: Json = {}) =>
  describeConfig({ ...(await configOf(folder)), ...fields });

describe('routers by config', () => {
  test.each<[string, Json, object]>([
    ['olmoe', { norm_topk_prob: true }, { scoring: 'softmax', renormalize: true }],
    ['mixtral', {}, { scoring: 'softmax', topK: 2, renormalize: true }],
    ['phimoe', {}, { scoring: 'sparsemixer', topK: 2, renormalize: false, jitter: 0.01 }],
    ['phimoe', { router_jitter_noise: 0.02 }, { jitter: 0.02 }],
    ['granitemoe', {}, { scoring: 'softmax', topK: 3, renormalize: true }],
    ['minimax_m2', {}, { scoring: 'sigmoid', renormalize: true }],
    [
      'deepseek_v2',
      {},
      { scoring: 'softmax', renormalize: false, scalingFactor: 2.5, groupLimit: undefined },
    ],
    ['deepseek_v2', { topk_method: undefined, routed_scaling_factor: undefined }, { scalingFactor: 1 }],
    ['deepseek_v2_groups', {}, { groupLimit: { numGroups: 4, chosenGroups: 2, score: 'max' } }],
    ['deepseek_v3', {}, { scoring: 'sigmoid', groupLimit: { numGroups: 4, chosenGroups: 2, score: 'top2' } }],
    ['deepseek_v3', { scoring_func: 'sigmoid', topk_method: 'noaux_tc' }, { scoring: 'sigmoid' }],
    ['deepseek_v3', { norm_topk_prob: undefined }, { renormalize: true }],
    ['deepseek_v3_one_group', {}, { groupLimit: undefined, scalingFactor: 2.446 }],
    ['dots1', { norm_topk_prob: undefined }, { renormalize: false }],
    ['qwen3_next', { norm_topk_prob: undefined }, { renormalize: true }],
  ])('%s with %j', async (folder, fields, router) => {
    expect((await described(folder, fields)).router).toMatchObject(router);
  });
});

describe('layers and shared experts by config', () => {
  test('deepseek: from first_k_dense_replace on, every moe_layer_freq-th counted from zero', async () => {
    const layers = async (fields: Json) =>
      (await described('deepseek_v3', { num_hidden_layers: 7, ...fields })).layers;
    expect(await layers({})).toEqual([1, 2, 3, 4, 5, 6]);
    expect(await layers({ first_k_dense_replace: 3 })).toEqual([3, 4, 5, 6]);
    expect(await layers({ first_k_dense_replace: 3, moe_layer_freq: 2 })).toEqual([4, 6]);
    expect(await layers({ first_k_dense_replace: null })).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(await layers({ n_routed_experts: 0 })).toEqual([]);
  });

  test('ernie: from start to end index, every interval-th counted from one', async () => {
    const layers = async (fields: Json) =>
      (await described('ernie4_5_moe', { num_hidden_layers: 7, moe_layer_end_index: -1, ...fields })).layers;
    expect(await layers({})).toEqual([1, 2, 3, 4, 5, 6]);
    expect(await layers({ moe_layer_start_index: 2, moe_layer_end_index: 5 })).toEqual([2, 3, 4, 5]);
    expect(await layers({ moe_layer_interval: 2 })).toEqual([1, 3, 5]);
  });

  test('several shared experts are one of their joint width; none is none', async () => {
    expect((await described('deepseek_v3')).sharedExpert).toEqual({ intermediateSize: 24, gated: false });
    expect((await described('deepseek_v2', { n_shared_experts: null })).sharedExpert).toBeUndefined();
    expect((await described('ernie4_5_moe', { moe_num_shared_experts: 0 })).sharedExpert).toBeUndefined();
    expect((await described('qwen3_next')).sharedExpert).toEqual({ intermediateSize: 20, gated: true });
  });
});

describe('decoders by config', () => {
  test.each<[string, number, number]>([
    ['qwen2_moe', 1e-6, 10_000],
    ['qwen3_moe', 1e-6, 10_000],
    ['olmoe', 1e-5, 10_000],
    ['mixtral', 1e-5, 1_000_000],
    ['deepseek_v2', 1e-6, 10_000],
    ['deepseek_v3', 1e-6, 10_000],
  ])('%s: what is left out is what transformers takes then', async (folder, rmsNormEps, theta) => {
    const decoder = await decoderOf(folder, { rms_norm_eps: undefined, rope_parameters: undefined });
    expect(decoder).toMatchObject({ rmsNormEps, rotary: { theta, scaling: { type: 'default' } } });
  });

  test('qwen2: the layers that slide are those of the list, else every other one up to max_window_layers', async () => {
    const windows = async (fields: Json) => {
      const { attention } = await decoderOf('qwen2_moe', {
        num_hidden_layers: 6,
        sliding_window: 5,
        use_sliding_window: true,
        layer_types: undefined,
        ...fields,
      });
      return [0, 1, 2, 3, 4, 5].map((layer) => attention.window(layer));
    };
    expect(await windows({ max_window_layers: 4 })).toEqual([5, 0, 5, 0, 0, 0]);
    expect(await windows({ max_window_layers: 28 })).toEqual([5, 0, 5, 0, 5, 0]);
    expect(await windows({ use_sliding_window: false })).toEqual([0, 0, 0, 0, 0, 0]);
    expect(await windows({ sliding_window: null })).toEqual([0, 0, 0, 0, 0, 0]);
    expect(await windows({ sliding_window: undefined })).toEqual([4096, 0, 4096, 0, 4096, 0]);
    const [full, sliding] = ['full_attention', 'sliding_attention'];
    const layer_types = [full, full, full, sliding, sliding, full];
    expect(await windows({ layer_types })).toEqual([0, 0, 0, 5, 5, 0]);
  });

  test.each<[string, Json, string, string[]]>([
    ['qwen2_moe', { layer_types: ['sliding_attention', 'full_attention'] }, 'BAD', ['use_sliding_window']],
    ['qwen2_moe', { layer_types: ['full_attention'] }, 'BAD', ['layer_types', '1', '2 layers']],
    ['qwen2_moe', { layer_types: 'full_attention' }, 'BAD', ['layer_types', 'an array of strings']],
    ['qwen2_moe', { layer_types: ['full_attention', 'conv'] }, 'UNSUPPORTED', ['layer_types', '"conv"']],
    ['deepseek_v3', { rope_interleave: 1 }, 'BAD', ['rope_interleave', '1']],
    [
      'qwen3_moe',
      { rope_parameters: { rope_type: 'yarn', factor: 2, truncate: 0 } },
      'BAD',
      ['truncate is 0, not true or false'],
    ],
    ['olmoe', { clip_qkv: 8 }, 'UNSUPPORTED', ['clip_qkv']],
    ['phimoe', {}, 'UNSUPPORTED', ['phimoe', 'cannot run them yet']],
  ])('%s with %j cannot be run', async (folder, fields, code, words) => {
    await expect(decoderOf(folder, fields)).rejects.toMatchObject(
      molaeError(`${code}_CHECKPOINT` as 'IO', ...words),
    );
  });
});

test.each<[string, Json, string, string[]]>([
  ['phimoe', { num_experts_per_tok: 3 }, 'UNSUPPORTED_CHECKPOINT', ['num_experts_per_tok', '3']],
  ['deepseek_v2', { topk_method: 'noaux_tc' }, 'UNSUPPORTED_CHECKPOINT', ['topk_method', '"noaux_tc"']],
  ['deepseek_v2', { scoring_func: 'sigmoid' }, 'UNSUPPORTED_CHECKPOINT', ['scoring_func', '"sigmoid"']],
  ['deepseek_v2', { norm_topk_prob: true }, 'UNSUPPORTED_CHECKPOINT', ['norm_topk_prob']],
  ['deepseek_v3', { topk_method: 'greedy' }, 'UNSUPPORTED_CHECKPOINT', ['topk_method', '"greedy"']],
  ['deepseek_v3', { scoring_func: 'softmax' }, 'UNSUPPORTED_CHECKPOINT', ['scoring_func']],
  ['deepseek_v3', { n_group: 3 }, 'BAD_CHECKPOINT', ['n_group 3', '8 experts']],
  ['deepseek_v3', { topk_group: 5 }, 'BAD_CHECKPOINT', ['topk_group 5']],
  ['deepseek_v3', { routed_scaling_factor: '2.5' }, 'BAD_CHECKPOINT', ['routed_scaling_factor', '"2.5"']],
  ['deepseek_v3', { moe_layer_freq: [0, 1] }, 'BAD_CHECKPOINT', ['moe_layer_freq']],
  ['ernie4_5_moe', { use_bias: true }, 'UNSUPPORTED_CHECKPOINT', ['use_bias']],
  ['ernie4_5_moe', { moe_k: 9 }, 'BAD_CHECKPOINT', ['moe_k', '9', '8']],
  ['granitemoe', { hidden_act: 'tanh' }, 'UNSUPPORTED_CHECKPOINT', ['hidden_act']],
])('%s with %j is refused', async (folder, fields, code, words) => {
  await expect(described(folder, fields)).rejects.toMatchObject(molaeError(code as 'IO', ...words));
});

import { join } from 'node:path';
import type { DecoderSpec, GroupedQueryAttention, LatentAttention } from './decoder-spec.ts';
import { badCheckpoint, quote } from './problems.ts';
import type { Shards } from './shards.ts';

/** Names of tensors, and the shapes that they must have. */
type Shapes = Readonly<Record<string, readonly number[]>>;

/**
 * Holds the tensors of a model beside those of its feed-forward networks against its config, before any is loaded: in a
 * product of other shapes the model would stop far from the reason.
 *
 * @throws MolaeError `BAD_CHECKPOINT` for one that is missing or has another shape.
 */
export function checkDecoderShapes(shards: Shards, spec: DecoderSpec): void {
  const check = (name: string, wanted: readonly number[]) => {
    const { shape, shard } = shards.tensor(name);
    if (`${shape}` === `${wanted}`) return;
    throw badCheckpoint(
      join(shards.folder, shard),
      `tensor ${quote(name)} has shape ${quote(shape)}, but config.json asks for ${quote(wanted)}`,
    );
  };
  for (const [name, wanted] of Object.entries(modelShapes(spec))) check(name, wanted);
  const inLayer = Object.entries(layerShapes(spec));
  for (let layer = 0; layer < spec.numLayers; layer++) {
    for (const [suffix, wanted] of inLayer) {
      const name = `model.layers.${layer}.${suffix}`;
      check(name, wanted);
      const bias = name.replace(/weight$/, 'bias');
      if (shards.tensors.has(bias)) check(bias, wanted.slice(0, 1));
    }
  }
}

function modelShapes({ hiddenSize, vocabSize, tiedEmbeddings }: DecoderSpec): Shapes {
  const table = [vocabSize, hiddenSize];
  return {
    'model.embed_tokens.weight': table,
    'model.norm.weight': [hiddenSize],
    ...(tiedEmbeddings ? {} : { 'lm_head.weight': table }),
  };
}

function layerShapes({ hiddenSize, attention }: DecoderSpec): Shapes {
  return {
    'input_layernorm.weight': [hiddenSize],
    'post_attention_layernorm.weight': [hiddenSize],
    ...(attention.kind === 'latent'
      ? latentShapes(hiddenSize, attention)
      : groupedQueryShapes(hiddenSize, attention)),
    'self_attn.o_proj.weight': [hiddenSize, attention.heads * attention.valueSize],
  };
}

function groupedQueryShapes(
  hiddenSize: number,
  { heads, kvHeads, headSize, valueSize, queryKeyNorm }: GroupedQueryAttention,
): Shapes {
  const queries = heads * headSize;
  const keys = kvHeads * headSize;
  const norms = { none: undefined, head: [headSize, headSize], all: [queries, keys] }[queryKeyNorm];
  return {
    'self_attn.q_proj.weight': [queries, hiddenSize],
    'self_attn.k_proj.weight': [keys, hiddenSize],
    'self_attn.v_proj.weight': [kvHeads * valueSize, hiddenSize],
    ...(norms && {
      'self_attn.q_norm.weight': [norms[0] as number],
      'self_attn.k_norm.weight': [norms[1] as number],
    }),
  };
}

function latentShapes(
  hiddenSize: number,
  { heads, headSize, valueSize, plainSize, kvLatentSize, queryLatentSize }: LatentAttention,
): Shapes {
  const queries = heads * headSize;
  return {
    ...(queryLatentSize === undefined
      ? { 'self_attn.q_proj.weight': [queries, hiddenSize] }
      : {
          'self_attn.q_a_proj.weight': [queryLatentSize, hiddenSize],
          'self_attn.q_a_layernorm.weight': [queryLatentSize],
          'self_attn.q_b_proj.weight': [queries, queryLatentSize],
        }),
    'self_attn.kv_a_proj_with_mqa.weight': [kvLatentSize + headSize - plainSize, hiddenSize],
    'self_attn.kv_a_layernorm.weight': [kvLatentSize],
    'self_attn.kv_b_proj.weight': [heads * (plainSize + valueSize), kvLatentSize],
  };
}

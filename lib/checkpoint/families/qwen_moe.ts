import type { ModelConfig } from '../config.ts';
import type { MoeSpec } from '../family.ts';
import { readSizes } from './read-sizes.ts';

/** What Qwen2-MoE and Qwen3-MoE have in common: everything but the shared expert. */
export function describeQwenMoe(config: ModelConfig): MoeSpec {
  const sizes = readSizes(config, { intermediateSize: 'moe_intermediate_size', isMoe });
  const renormalize = config.boolean('norm_topk_prob', false);
  return { ...sizes, router: { scoring: 'softmax', topK: sizes.topK, renormalize } };
}

/** Every `decoder_sparse_step`-th layer, counted from one, except those listed as `mlp_only_layers`. */
function isMoe(config: ModelConfig): (layer: number) => boolean {
  const step = config.optionalPositiveInteger('decoder_sparse_step') ?? 1;
  const mlpOnly = new Set(config.integerList('mlp_only_layers'));
  return (layer) => !mlpOnly.has(layer) && (layer + 1) % step === 0;
}

/** The window of layers that slide, 0 where none does; as transformers, 4096 tokens where it is left out, none where it is null. */
export function slidingWindow(config: ModelConfig): number {
  if (!config.boolean('use_sliding_window', false)) return 0;
  const absent = config.raw.sliding_window === null ? 0 : 4096;
  return config.optionalPositiveInteger('sliding_window') ?? absent;
}

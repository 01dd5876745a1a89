import type { Operator } from '../../experts.ts';
import type { ModelConfig } from '../config.ts';
import type { MoeSpec, SharedExpertTensors } from '../family.ts';
import { everyLayer, readActivation, readNumExperts, readNumLayers, readTopK } from '../family.ts';

/** What Qwen2-MoE and Qwen3-MoE have in common: everything but the shared expert. */
export function describeQwenMoe(config: ModelConfig): MoeSpec {
  const numExperts = readNumExperts(config);
  const topK = readTopK(config, numExperts);
  return {
    hiddenSize: config.positiveInteger('hidden_size'),
    intermediateSize: config.positiveInteger('moe_intermediate_size'),
    numExperts,
    topK,
    activation: readActivation(config),
    layers: moeLayers(config, numExperts),
    numLayers: readNumLayers(config),
    router: { scoring: 'softmax', topK, renormalize: config.boolean('norm_topk_prob', false) },
  };
}

/** Every `decoder_sparse_step`-th layer, counted from one, except those listed as `mlp_only_layers`. */
function moeLayers(config: ModelConfig, numExperts: number): number[] {
  if (numExperts === 0) return [];
  const step = config.optionalPositiveInteger('decoder_sparse_step') ?? 1;
  const mlpOnly = new Set(config.integerList('mlp_only_layers'));
  return everyLayer(readNumLayers(config)).filter((layer) => !mlpOnly.has(layer) && (layer + 1) % step === 0);
}

/** Tensor names that the two families share. */
export const qwenMoeTensors = {
  expertsPrefix: (layer: number) => `model.layers.${layer}.mlp`,
  expertTensor: (layer: number, expert: number, operator: Operator) =>
    `model.layers.${layer}.mlp.experts.${expert}.${operator}_proj.weight`,
  routerTensor: (layer: number) => `model.layers.${layer}.mlp.gate.weight`,
};

/** Names of the gated shared expert that Qwen2-MoE and Qwen3-Next have. */
export function qwenSharedExpertTensors(layer: number): SharedExpertTensors {
  const prefix = `model.layers.${layer}.mlp`;
  return {
    gate: `${prefix}.shared_expert.gate_proj.weight`,
    up: `${prefix}.shared_expert.up_proj.weight`,
    down: `${prefix}.shared_expert.down_proj.weight`,
    router: `${prefix}.shared_expert_gate.weight`,
  };
}

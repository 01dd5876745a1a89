import type { Operator } from '../../operators.ts';
import type { SharedExpertTensors } from '../family.ts';

/** Of Qwen's MoE layers, and of many families since. */
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

/** Mixtral's tensor names: w1 is gate, w3 up, w2 down. */
export function blockSparseTensors() {
  const names: Record<Operator, string> = { gate: 'w1', up: 'w3', down: 'w2' };
  const prefix = (layer: number) => `model.layers.${layer}.block_sparse_moe`;
  return {
    expertsPrefix: prefix,
    expertTensor: (layer: number, expert: number, operator: Operator) =>
      `${prefix(layer)}.experts.${expert}.${names[operator]}.weight`,
    routerTensor: (layer: number) => `${prefix(layer)}.gate.weight`,
  };
}

/** Tensor names of DeepSeek's MoE layers. */
export const deepseekTensors = {
  ...qwenMoeTensors,
  sharedExpertTensors(layer: number): SharedExpertTensors {
    const prefix = `model.layers.${layer}.mlp.shared_experts`;
    return {
      gate: `${prefix}.gate_proj.weight`,
      up: `${prefix}.up_proj.weight`,
      down: `${prefix}.down_proj.weight`,
    };
  },
};

/** Of the families with the router of DeepSeek-V3. */
export const sigmoidRouterTensors = {
  ...deepseekTensors,
  correctionBiasTensor: (layer: number) => `model.layers.${layer}.mlp.gate.e_score_correction_bias`,
};

import type { MoeSpec } from '../../lib/checkpoint/family.ts';

/** A model of these sizes. */
export function specOf(
  hiddenSize: number,
  intermediateSize: number,
  numExperts: number,
  topK: number,
  numLayers: number,
): MoeSpec {
  return {
    hiddenSize,
    intermediateSize,
    numExperts,
    topK,
    activation: 'silu',
    layers: Array.from({ length: numLayers }, (_, layer) => layer),
    numLayers,
    router: { scoring: 'softmax', topK, renormalize: true },
  };
}

export const QWEN15 = specOf(2048, 1408, 60, 4, 24);
export const DEEPSEEK_V2_LITE = specOf(2048, 1408, 64, 6, 26);
export const QWEN3_30B = specOf(2048, 768, 128, 8, 48);
export const OLMOE = specOf(2048, 1024, 64, 8, 16);
export const DEEPSEEK_V3 = specOf(7168, 2048, 256, 8, 58);

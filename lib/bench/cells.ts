export const LAYER_KINDS = ['dense', 'latent'] as const;
export type LayerKind = (typeof LAYER_KINDS)[number];

/** The sizes of one layer, by the symbols of the design. */
export interface LayerCell {
  readonly model: string;
  readonly n: number;
  readonly m: number;
  readonly N: number;
  readonly K: number;
  readonly k: number;
  readonly r: number;
  /** N of the model, where N here is smaller. */
  readonly fullN: number;
}

/** The cells of the design that fit on a CPU. */
export const CELLS: readonly LayerCell[] = [
  ...[15, 60].map((k) => ({ model: 'Qwen1.5-MoE', n: 2048, m: 1408, N: 60, K: 4, k, r: 704, fullN: 60 })),
  ...[8, 64].map((k) => ({ model: 'OLMoE', n: 2048, m: 1024, N: 64, K: 8, k, r: 512, fullN: 64 })),
  ...[16, 128].flatMap((k) =>
    [384, 768].map((r) => ({ model: 'Qwen3-30B-A3B', n: 2048, m: 768, N: 128, K: 8, k, r, fullN: 128 })),
  ),
  { model: 'DeepSeek-V2-Lite', n: 2048, m: 1408, N: 64, K: 6, k: 16, r: 704, fullN: 64 },
];

/**
 * The same layer with at most about `most` experts, in as many groups as before: a token falls into about as many of them,
 * so the latent layer's share of shared work stays. Groups get smaller with the layer.
 */
export function scaleDown(cell: LayerCell, most: number): LayerCell {
  if (cell.N <= most) return cell;
  const groups = cell.N / cell.k;
  const k = Math.max(1, Math.floor(most / groups), Math.ceil(cell.K / groups));
  return { ...cell, N: groups * k, k };
}

export function describeCell({ model, n, m, N, K, fullN }: LayerCell): string {
  return `${model} n${n} m${m} N${N}${N === fullN ? '' : ` of ${fullN}`} K${K}`;
}

/** A cell as one of its layers: only the latent one has groups. */
export function describeLayer(kind: LayerKind, cell: LayerCell): string {
  return kind === 'dense' ? describeCell(cell) : `${describeCell(cell)} k${cell.k} r${cell.r}`;
}

import type { Row } from './context.ts';

/** Some layers, dense and latent, as the README shows them. */
const LAYERS: readonly Layer[] = [
  { shown: 'Qwen1.5-MoE layer, 4,096 tokens, f32, k 8, r 704', ...qwen('layer-prefill', 4096, 'f32') },
  { shown: 'the same, bf16 weights', ...qwen('layer-prefill', 4096, 'bf16') },
  {
    shown: 'the same, bf16 weights and [inputs](docs/api.md#packed-weights)',
    ...qwen('layer-rounded', 4096, 'bf16'),
  },
  { shown: '512 tokens, f32', ...qwen('layer-prefill', 512, 'f32') },
  { shown: '512 tokens, bf16 weights and inputs', ...qwen('layer-rounded', 512, 'bf16') },
  { shown: '64 tokens, f32, all 60 experts, k 15', ...qwen('layer-prefill', 64, 'f32', 15) },
  { shown: '64 tokens, bf16, all 60 experts', ...qwen('layer-prefill', 64, 'bf16', 15) },
  { shown: '16 tokens, f32, all 60 experts', ...qwen('layer-prefill', 16, 'f32', 15) },
  { shown: '16 tokens, bf16, all 60 experts', ...qwen('layer-prefill', 16, 'bf16', 15) },
  { shown: '1 token, f32, k 4', ...qwen('layer-decode', 1, 'f32', 4) },
  { shown: '1 token, bf16, k 4', ...qwen('layer-decode', 1, 'bf16', 4) },
  {
    shown: 'OLMoE layer, Zipf routing, 512 tokens, f32, k 4, r 512',
    question: 'layer-prefill',
    tokens: 512,
    dtype: 'f32',
    cell: { model: 'OLMoE', k: 4, r: 512, distribution: 'zipf' },
  },
  {
    shown: 'Qwen3-30B layer, 4,096 tokens, f32, k 4, r 384',
    question: 'layer-prefill',
    tokens: 4096,
    dtype: 'f32',
    cell: { model: 'Qwen3-30B-A3B', k: 4, r: 384, distribution: 'uniform' },
  },
];

interface Layer {
  readonly shown: string;
  readonly question: string;
  readonly tokens: number;
  readonly dtype: string;
  readonly cell: Readonly<Record<string, string | number>>;
}

function qwen(question: string, tokens: number, dtype: string, k = 8): Omit<Layer, 'shown'> {
  return { question, tokens, dtype, cell: { model: 'Qwen1.5-MoE', k, r: 704, distribution: 'uniform' } };
}

export function speedTable(rows: readonly Row[]): string {
  const lines = LAYERS.map((layer) => {
    const [dense, latent] = [rowOf(layer, 'dense', rows), rowOf(layer, 'latent', rows)];
    return `| ${layer.shown} | ${speed(dense)} | ${speed(latent)} | ${peers(dense)} |`;
  });
  return ['| | dense | latent | dense against peers |', '|---|---:|---:|---|', ...lines].join('\n');
}

function rowOf({ question, tokens, dtype, cell, shown }: Layer, kind: string, rows: readonly Row[]): Row {
  const found = rows.find(
    (row) =>
      row.question === question &&
      row.tokens === tokens &&
      row.dtype === dtype &&
      // Rows with rounded inputs do not say k and r: there is one of each.
      Object.entries({ ...cell, kind }).every(([name, value]) => (row.data[name] ?? value) === value),
  );
  if (!found) throw new Error(`No stored row of ${shown}, ${kind}`);
  return found;
}

/** What bounds it, how much of that it has, and the time. */
function speed({ tokens, gflops, gbps, ofSgemm, ofFma, ofRead, medianMs }: Row): string {
  const ms = `${medianMs < 100 ? medianMs.toFixed(1) : medianMs.toFixed(0)} ms`;
  const percent = (share: number | null) => `${(100 * (share ?? 0)).toFixed(0)}%`;
  if ((tokens ?? 0) >= 512) return `${gflops?.toFixed(0)} GFLOP/s, ${percent(ofSgemm)}, ${ms}`;
  return (ofRead ?? 0) > (ofFma ?? 0)
    ? `${gbps?.toFixed(1)} GB/s, ${percent(ofRead)}, ${ms}`
    : `${gflops?.toFixed(0)} GFLOP/s, ${percent(ofFma)}, ${ms}`;
}

/** Of several ways of a peer the fastest. */
function peers(row: Row): string {
  const fastest = new Map<string, number>();
  for (const [name, peer] of Object.entries(row.peers)) {
    const engine = /^(onnxruntime|llama\.cpp|PyTorch)/.exec(name)?.[0];
    if (!engine || !('speedup' in peer)) continue;
    fastest.set(engine, Math.min(peer.speedup, fastest.get(engine) ?? peer.speedup));
  }
  return [...fastest].map(([engine, speedup]) => `${engine} ${speedup.toFixed(2)}×`).join(', ');
}

import { checkClose, checkFinite, multiply } from '../lib/bench/check.ts';
import { exactValues, poisoned, tensor, uniformSource } from '../lib/bench/data.ts';
import { batchedGemm, groupedGemm } from '../lib/linalg.ts';
import { type Context, goal, type Question } from './support/context.ts';

/** X [batch, rows, inner] · (W [batch, cols, inner])ᵀ: the product of every expert with its tokens. */
interface Cell {
  readonly batch: number;
  readonly rows: number;
  readonly inner: number;
  readonly cols: number;
}

const quick: readonly Cell[] = [
  { batch: 64, rows: 64, inner: 256, cols: 256 },
  { batch: 16, rows: 128, inner: 2048, cols: 1408 },
];

const full: readonly Cell[] = [
  ...quick,
  { batch: 256, rows: 32, inner: 64, cols: 64 },
  { batch: 60, rows: 16, inner: 2048, cols: 1408 },
  { batch: 60, rows: 128, inner: 2048, cols: 704 },
  { batch: 60, rows: 128, inner: 704, cols: 1408 },
];

async function measure(context: Context, cell: Cell): Promise<void> {
  const { batch, rows, inner, cols } = cell;
  const { device } = context;
  using a = tensor(device, 'f32', [batch, rows, inner], 1);
  using b = tensor(device, 'f32', [batch, cols, inner], 2);
  using out = poisoned(device, 'f32', [batch, rows, cols]);
  const problems = raggedProblems(cell, a, b, out);
  const batched = () => batchedGemm(a, b, { transposeB: true, out });
  const grouped = () => groupedGemm(problems);

  await batched();
  const c = await out.read();
  checkFinite('batchedGemm', c);
  const left = exactValues('f32', 1, batch * rows * inner);
  const right = exactValues('f32', 2, batch * cols * inner);
  let relativeError = 0;
  for (const index of new Set([0, batch >> 1, batch - 1])) {
    const row = (index + 1) * rows - 1;
    const w = right.subarray(index * cols * inner, (index + 1) * cols * inner);
    const wanted = multiply(w, left.subarray(row * inner, (row + 1) * inner), cols);
    const got = c.subarray(row * cols, (row + 1) * cols);
    relativeError = Math.max(relativeError, checkClose('batchedGemm', got, wanted, 1e-5));
  }
  await out.write(new Float32Array(out.length).fill(Number.NaN));
  await grouped();
  const last = problems.at(-1);
  if (last) {
    const got = await last.out.read();
    checkFinite('groupedGemm', got);
    const w = right.subarray((batch - 1) * cols * inner);
    const wanted = multiply(
      w,
      left.subarray((batch - 1) * rows * inner, ((batch - 1) * rows + 1) * inner),
      cols,
    );
    checkClose('groupedGemm', got.subarray(0, cols), wanted, 1e-5);
  }

  const timings = await context.timeTogether({ batched, grouped });
  const shape = `${batch} × ${rows}x${inner} · (${cols}x${inner})ᵀ`;
  const raggedRows = problems.reduce((sum, { a: left }) => sum + (left.shape[0] as number), 0);
  for (const [name, total] of [
    ['batched', batch * rows],
    ['grouped', raggedRows],
  ] as const) {
    context.add({
      name: `${name}Gemm`,
      shape: name === 'batched' ? shape : `${shape}, ragged rows`,
      tokens: total,
      dtype: 'f32',
      timing: timings[name],
      flops: 2 * total * inner * cols,
      bytes: 4 * (total * inner + batch * cols * inner + total * cols),
      relativeError,
      goals: ({ ofSgemm }) =>
        rows >= 128 && inner >= 512 ? [goal('of sgemm', ofSgemm ?? 0, 0.95, 1.05)] : [],
    });
  }
  for (const { a: left, b: right, out: product } of problems)
    for (const t of [left, right, product]) t.dispose();
}

/** The same products with 1 to `rows` rows each. */
function raggedProblems(
  { batch, rows }: Cell,
  ...[a, b, out]: [
    ReturnType<typeof tensor<'f32'>>,
    ReturnType<typeof tensor<'f32'>>,
    ReturnType<typeof tensor<'f32'>>,
  ]
) {
  const uniform = uniformSource(3);
  return Array.from({ length: batch }, (_, i) => {
    const some = 1 + Math.floor(uniform() * rows);
    using left = a.slice(i);
    using product = out.slice(i);
    return { a: left.rows(0, some), b: b.slice(i), out: product.rows(0, some), transposeB: true };
  });
}

export const question: Question = {
  name: 'batched-gemm',
  asks: 'Do many products at once run as fast as one large one?',
  minutes: { full: 1, quick: 0.3 },
  async run(context) {
    for (const cell of context.quick ? quick : full) await measure(context, cell);
  },
};

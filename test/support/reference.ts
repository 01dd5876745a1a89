/** Plain f64 loops that every kernel is held against. Nothing here is clever. */

export type Matrix = { rows: number; cols: number; data: Float64Array };

export function matrix(rows: number, cols: number, data?: ArrayLike<number>): Matrix {
  return { rows, cols, data: data ? Float64Array.from(data) : new Float64Array(rows * cols) };
}

export function multiply(a: Matrix, b: Matrix): Matrix {
  const c = matrix(a.rows, b.cols);
  for (let i = 0; i < a.rows; i++) {
    for (let k = 0; k < a.cols; k++) {
      const scale = a.data[i * a.cols + k] as number;
      for (let j = 0; j < b.cols; j++)
        (c.data[i * b.cols + j] as number) += scale * (b.data[k * b.cols + j] as number);
    }
  }
  return c;
}

export function transposed(a: Matrix): Matrix {
  const t = matrix(a.cols, a.rows);
  for (let i = 0; i < a.rows; i++)
    for (let j = 0; j < a.cols; j++) t.data[j * a.rows + i] = a.data[i * a.cols + j] as number;
  return t;
}

/** W · x for one vector. */
export function apply(w: Matrix, x: ArrayLike<number>): Float64Array {
  const y = new Float64Array(w.rows);
  for (let i = 0; i < w.rows; i++) {
    let sum = 0;
    for (let j = 0; j < w.cols; j++) sum += (w.data[i * w.cols + j] as number) * (x[j] as number);
    y[i] = sum;
  }
  return y;
}

/** The error function to full f64 precision: its Taylor series where that converges fast, a continued fraction beyond. */
function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 6) return Math.sign(x);
  if (z < 2.5) {
    let term = z;
    let sum = z;
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) {
      term *= (-z * z) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n >= 1; n--) fraction = n / 2 / (z + fraction);
  return Math.sign(x) * (1 - Math.exp(-z * z) / (Math.sqrt(Math.PI) * (z + fraction)));
}

export const activations: Record<string, (x: number) => number> = {
  silu: (x) => x / (1 + Math.exp(-x)),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu2: (x) => Math.max(0, x) ** 2,
};

export interface DenseExpert {
  gate: Matrix;
  up: Matrix;
  down: Matrix;
}

/** down · (act(gate · x) ⊙ (up · x)) */
export function expertOutput(expert: DenseExpert, x: ArrayLike<number>, activation: string): Float64Array {
  const act = activations[activation] as (x: number) => number;
  const gate = apply(expert.gate, x);
  const up = apply(expert.up, x);
  return apply(
    expert.down,
    gate.map((g, i) => act(g) * (up[i] as number)),
  );
}

/** y [T, n] of the weighted routed experts, and optionally of a shared expert with its gate. */
export function moeForward(
  experts: readonly DenseExpert[],
  x: Matrix,
  ids: ArrayLike<number>,
  weights: ArrayLike<number>,
  topK: number,
  activation: string,
  shared?: { expert: DenseExpert; gateLogit?: ArrayLike<number> | undefined },
): Matrix {
  const y = matrix(x.rows, x.cols);
  for (let t = 0; t < x.rows; t++) {
    const row = x.data.subarray(t * x.cols, (t + 1) * x.cols);
    const out = y.data.subarray(t * x.cols, (t + 1) * x.cols);
    const add = (values: Float64Array, scale: number) => {
      for (let j = 0; j < x.cols; j++) (out[j] as number) += scale * (values[j] as number);
    };
    for (let k = 0; k < topK; k++) {
      const slot = t * topK + k;
      add(
        expertOutput(experts[ids[slot] as number] as DenseExpert, row, activation),
        weights[slot] as number,
      );
    }
    if (shared) {
      const logit = shared.gateLogit;
      const scale = logit
        ? 1 / (1 + Math.exp(-row.reduce((sum, v, j) => sum + v * (logit[j] as number), 0)))
        : 1;
      add(expertOutput(shared.expert, row, activation), scale);
    }
  }
  return y;
}

/** ‖a − b‖ / ‖b‖ over all elements; NaN anywhere gives NaN, which no bound accepts. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const { difference, norm } = distance(a, b);
  return norm === 0 ? difference : difference / norm;
}

/**
 * The same for sums of terms that are as large as `usual`, against that where they cancel: of one token and one column
 * hardly anything may be left, which no sum in f32 has to many digits.
 */
export function errorOfSums(a: ArrayLike<number>, b: ArrayLike<number>, usual: number): number {
  const { difference, norm } = distance(a, b);
  return difference / Math.max(norm, usual * Math.sqrt(b.length), Number.MIN_VALUE);
}

function distance(a: ArrayLike<number>, b: ArrayLike<number>): { difference: number; norm: number } {
  if (a.length !== b.length) throw new Error(`lengths differ: ${a.length}, ${b.length}`);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += ((a[i] as number) - (b[i] as number)) ** 2;
    norm += (b[i] as number) ** 2;
  }
  return { difference: Math.sqrt(difference), norm: Math.sqrt(norm) };
}

type Numbers = ArrayLike<number>;

/** Thrown instead of a time: a wrong result is never timed. */
export class WrongResult extends Error {}

/** Throws unless ‖actual − expected‖ ≤ bound · ‖expected‖; NaN (an element left unwritten) never passes. Returns the error. */
export function checkClose(what: string, actual: Numbers, expected: Numbers, bound: number): number {
  if (actual.length !== expected.length)
    throw new WrongResult(`${what}: ${actual.length} numbers, not ${expected.length}`);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += ((actual[i] as number) - (expected[i] as number)) ** 2;
    norm += (expected[i] as number) ** 2;
  }
  const error = Math.sqrt(difference / norm);
  if (!(error <= bound)) throw new WrongResult(`${what}: relative error ${error}, more than ${bound}`);
  return error;
}

/** Throws where a number is NaN or infinite: nothing poisoned may be left. */
export function checkFinite(what: string, actual: Numbers): void {
  for (let i = 0; i < actual.length; i++) {
    if (!Number.isFinite(actual[i])) throw new WrongResult(`${what}: ${actual[i]} at ${i}`);
  }
}

/** W [rows, x.length] · x in f64, row by row. */
export function multiply(w: Numbers, x: Numbers, rows: number): Float64Array {
  const inner = x.length;
  const y = new Float64Array(rows);
  for (let i = 0; i < rows; i++) {
    let sum = 0;
    for (let j = 0, at = i * inner; j < inner; j++, at++) sum += (w[at] as number) * (x[j] as number);
    y[i] = sum;
  }
  return y;
}

export function silu(x: number): number {
  return x / (1 + Math.exp(-x));
}

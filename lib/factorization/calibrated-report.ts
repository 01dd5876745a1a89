import { OPERATORS, type Operator } from '../operators.ts';
import type { FactorizationReport } from './report.ts';

/** @internal What the experts of a group lose together, by operator. */
export class CalibratedLoss {
  readonly #lost = [0, 0, 0];
  readonly #original = [0, 0, 0];
  #output = 0;

  add({
    lost,
    original,
    lostOutput,
  }: {
    lost: Float64Array;
    original: Float64Array;
    lostOutput: number;
  }): void {
    for (let i = 0; i < 3; i++) {
      (this.#lost[i] as number) += lost[i] as number;
      (this.#original[i] as number) += original[i] as number;
    }
    this.#output += lostOutput;
  }

  relative(operator: Operator): number {
    const index = OPERATORS.indexOf(operator);
    return relativeTo(this.#lost[index] as number, this.#original[index] as number);
  }

  get output(): number {
    return relativeTo(this.#output, this.#original[2] as number);
  }
}

function relativeTo(part: number, whole: number): number {
  return whole > 0 ? Math.sqrt(part / whole) : 0;
}

/** Sums of f32 products stand behind the spectra: what is smaller than this, relative to the largest, is rounding. */
const TOLERANCE = 2 ** -8;

/** @internal What became of an operator of a group. */
export function reportOf(
  operator: Operator,
  group: number,
  { values, latentSize }: { readonly values: Float64Array; readonly latentSize: number },
  loss: CalibratedLoss,
): FactorizationReport {
  const total = values.reduce((sum, value) => sum + value, 0);
  const tail = values.subarray(latentSize).reduceRight((sum, value) => sum + value, 0);
  const threshold = TOLERANCE ** 2 * (values[0] ?? 0);
  const jointDimension = values.reduce((count, value) => count + (value > threshold ? 1 : 0), 0);
  return {
    operator,
    group,
    latentSize,
    norm: 'outputs',
    relativeError: loss.relative(operator),
    optimalRelativeError: relativeTo(tail, total),
    exact: jointDimension <= latentSize,
    jointDimension,
    tolerance: TOLERANCE,
    outputError: loss.output,
  };
}

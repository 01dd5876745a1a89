import type { WeightDType } from '../dtype.ts';
import { type DenseExperts, LatentExperts } from '../experts.ts';
import type { Operator } from '../operators.ts';
import type { Tensor } from '../tensor.ts';
import type { Partition } from './groups.ts';
import type { FactorizationReport } from './report.ts';

/** How factors are stored. */
export interface FactorStorage {
  /** Of the factors; by default the experts' own. */
  readonly dtype?: WeightDType | undefined;
}

/** The factors of one operator of one group. */
export interface OperatorFactors {
  /** [k, m, r], for down [k, r, m] */
  readonly a: Tensor;
  /** [r, n], for down [n, r]; the same tensor for gate and up where they share it. */
  readonly b: Tensor;
  readonly report: FactorizationReport;
}

/** @internal The factors of some operators of one group, in the order of `OPERATORS`. */
export type FactorsByOperator = readonly (readonly [Operator, OperatorFactors])[];

/** @internal The factors of a layer, gathered group by group; they belong to it until they become experts. */
export class GatheredFactors {
  readonly #operators: Readonly<Record<Operator, { readonly a: Tensor[]; readonly b: Tensor[] }>> = {
    gate: { a: [], b: [] },
    up: { a: [], b: [] },
    down: { a: [], b: [] },
  };
  readonly #report: FactorizationReport[] = [];

  /** Takes factors over; groups come in their order. */
  add(factors: FactorsByOperator): void {
    for (const [operator, { a, b, report }] of factors) {
      this.#operators[operator].a.push(a);
      this.#operators[operator].b.push(b);
      this.#report.push(report);
    }
  }

  /** The layer of these factors, which it owns, and of dense operators where there are none. */
  experts(dense: DenseExperts, groups: Partition): LatentExperts {
    const operator = (name: Operator) =>
      this.#operators[name].b.length > 0 ? this.#operators[name] : dense[name];
    return new LatentExperts({
      groups,
      gate: operator('gate'),
      up: operator('up'),
      down: operator('down'),
      activation: dense.activation,
      sharedExpert: dense.sharedExpert,
      report: this.#report,
      owned: [...this.#tensors()],
    });
  }

  dispose(): void {
    for (const tensor of this.#tensors()) tensor.dispose();
  }

  /** Each once: gate and up may share theirs. */
  #tensors(): Set<Tensor> {
    return new Set(Object.values(this.#operators).flatMap(({ a, b }) => [...a, ...b]));
  }
}

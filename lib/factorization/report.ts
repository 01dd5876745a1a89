import type { Operator } from '../operators.ts';

/** What became of one operator of one group. With `sharedGateUp`, gate and up have the figures of both together. */
export interface FactorizationReport {
  readonly operator: Operator;
  readonly group: number;
  readonly latentSize: number;
  /** What errors are relative to: the experts' weights (stacked SVD), or what they put out on calibration text. */
  readonly norm?: 'weights' | 'outputs';
  /**
   * sqrt(Σ‖W_i − A_i B‖²_F / Σ‖W_i‖²_F), measured on the factors as stored, rounded to their dtype. In the norm of
   * outputs: of the operator's results on up to 1024 calibration tokens of each expert, weighed as calibration weighs them.
   */
  readonly relativeError: number;
  /**
   * The least possible (Eckart–Young): sqrt(Σ_{j>r} λ_j / Σ λ_j), λ the spectrum of Σ W_iᵀW_i. In the norm of outputs: of the
   * whitened spectrum, for experts that all see their group's inputs. With `rankReduction` this, `exact`, `jointDimension` and
   * `controlRelativeError` are of the reduced experts, `relativeError` of the originals: it may be above 0 where `exact` is true.
   */
  readonly optimalRelativeError: number;
  /** Theorem 1: the joint row space (down: column space) of the group has a dimension of at most r. */
  readonly exact: boolean;
  /** Its numerical dimension: singular values of the stack above `tolerance` times the largest. */
  readonly jointDimension: number;
  readonly tolerance: number;
  /** The optimum of the same experts after each one's shared side went through its own random signed permutation. */
  readonly controlRelativeError?: number;
  /** In the norm of outputs: what the group's experts put out, all operators converted, relative to the originals. */
  readonly outputError?: number;
}

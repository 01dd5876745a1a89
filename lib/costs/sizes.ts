import { expected } from '../errors.ts';

/** The sizes that costs depend on, by the names of the design: n, m, N, K. */
export interface LayerSizes {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numExperts: number;
  readonly topK: number;
}

export function checkSizes({ hiddenSize, intermediateSize, numExperts, topK }: LayerSizes): void {
  positiveInteger('hiddenSize', hiddenSize);
  positiveInteger('intermediateSize', intermediateSize);
  positiveInteger('numExperts', numExperts);
  positiveInteger('topK', topK);
  if (topK > numExperts) throw expected(`at most the ${numExperts} experts`, 'topK', topK);
}

export function positiveInteger(name: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1)
    throw expected('a positive integer', name, value);
  return value;
}

export function positive(name: string, value: unknown): number {
  if (typeof value !== 'number' || !(value > 0) || !Number.isFinite(value))
    throw expected('a positive number', name, value);
  return value;
}

import { planConversion } from '../analysis.ts';
import type { DType } from '../dtype.ts';
import { type DenseExperts, isLatent, type LatentExperts, OPERATORS } from '../experts.ts';
import type { Tensor } from '../tensor.ts';
import type { MethodRequest } from './method.ts';

/** Elements and bytes of the routed experts of a layer. */
export interface ExpertSize {
  readonly expertParameters: number;
  readonly expertBytes: number;
}

/** k and r that remove the share asked for, as the planner chooses them. */
export function planSizes({ model, targetRatio, groupSize }: MethodRequest): {
  readonly groupSize: number;
  readonly latentSize: number;
} {
  return planConversion(model.checkpoint.spec, {
    targetRatio,
    ...(groupSize !== undefined && { groupSize }),
  });
}

/** Of experts as they are stored: what several share counts once. */
export function sizeOf(experts: DenseExperts | LatentExperts): ExpertSize {
  const tensors = new Set<Tensor>();
  for (const operator of OPERATORS) {
    const own = experts[operator];
    for (const tensor of isLatent(own) ? [...own.a, ...own.b] : own) tensors.add(tensor);
  }
  let expertParameters = 0;
  let expertBytes = 0;
  for (const { length, byteLength } of tensors) {
    expertParameters += length;
    expertBytes += byteLength;
  }
  return { expertParameters, expertBytes };
}

/** Of a number of parameters that would be stored in the experts' own dtype. */
export function storedSize({ gate }: DenseExperts, expertParameters: number): ExpertSize {
  const dtype = (gate[0] as Tensor).dtype as Exclude<DType, 'i32'>;
  const bytes = { f32: 4, f64: 8, f16: 2, bf16: 2 }[dtype];
  return { expertParameters, expertBytes: expertParameters * bytes };
}

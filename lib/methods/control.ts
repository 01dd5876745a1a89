import type { Device } from '../device.ts';
import type { DenseExperts, LatentExperts, LatentOperator } from '../experts.ts';
import { factorizeExperts } from '../factorization/factorize.ts';
import { gemm } from '../linalg.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import { mulberry32 } from '../random.ts';
import type { Tensor } from '../tensor.ts';
import { denseExperts, remakeExperts } from './experts.ts';
import { type Method, withExperts } from './method.ts';
import { costsOf, planSizes } from './sizes.ts';

/**
 * The control of the paper's method: the same, after the side that experts share went through a random signed permutation
 * of its own in every expert, and back. Every expert keeps its spectrum, but nothing is shared except by chance: what
 * stacked SVD is better by, it owes to what experts really have in common. Nothing that one would use.
 */
export const stackedSvdControl: Method = {
  name: 'stacked-svd-control',
  summary: 'stacked-svd of experts that have nothing in common: what sharing owes to chance',
  grouped: true,
  weightsOnly: true,
  check: (request) => void planSizes(request),
  async prepare(request) {
    const { groupSize, latentSize } = planSizes(request);
    return {
      groupSize,
      async compress(layer) {
        const original = denseExperts(layer);
        using scrambled = await scramble(original);
        using latent = await factorizeExperts(scrambled, {
          groupSize,
          latentSize,
          dtype: (original.gate[0] as Tensor).dtype as 'f32',
          signal: request.signal,
        });
        const experts = await unscramble(latent, original);
        return withExperts(layer, experts, costsOf(latent, layer.block.spec.topK));
      },
    };
  },
};

/** W P for gate and up, Pᵀ W for down, with a P for every expert. */
async function scramble(experts: DenseExperts): Promise<DenseExperts> {
  const { device, hiddenSize: n } = experts;
  return mapExperts(experts, async (expert, operator) => {
    using p = signedPermutation(device, n, expert);
    using w = await (experts[operator][expert] as Tensor).to('f32');
    return operator === 'down' ? gemm(p, w, { transposeA: true }) : gemm(w, p);
  });
}

/** The experts that factors of scrambled ones stand for, in f32. */
async function unscramble(latent: LatentExperts, original: DenseExperts): Promise<DenseExperts> {
  const { device, hiddenSize: n } = original;
  return mapExperts(original, async (expert, operator) => {
    using p = signedPermutation(device, n, expert);
    using w = await multiplyOut(latent, expert, operator);
    return operator === 'down' ? gemm(p, w) : gemm(w, p, { transposeB: true });
  });
}

/** A_i B, for down B A_i, in f32. */
async function multiplyOut(latent: LatentExperts, expert: number, operator: Operator): Promise<Tensor> {
  const group = latent.groups.findIndex((members) => members.includes(expert));
  const { a, b } = latent[operator] as LatentOperator;
  using stored = (a[group] as Tensor).slice((latent.groups[group] as readonly number[]).indexOf(expert));
  using own = await stored.to('f32');
  using shared = await (b[group] as Tensor).to('f32');
  return operator === 'down' ? await gemm(shared, own) : await gemm(own, shared);
}

/** `make` gives one matrix after the other, operator by operator. */
function mapExperts(
  experts: DenseExperts,
  make: (expert: number, operator: Operator) => Promise<Tensor>,
): Promise<DenseExperts> {
  return remakeExperts(experts, async (made) => {
    for (const operator of OPERATORS) {
      for (const expert of experts[operator].keys()) made[operator].push(await make(expert, operator));
    }
  });
}

/** [n, n] with one ±1 in every row and column, the same for the same seed. */
function signedPermutation(device: Device, n: number, seed: number): Tensor<'f32'> {
  const random = mulberry32((seed + 1) * 0x9e3779b9);
  const columns = Array.from({ length: n }, (_, i) => i);
  const data = new Float32Array(n * n);
  for (let row = n - 1; row >= 0; row--) {
    const pick = Math.floor(random() * (row + 1));
    const column = columns[pick] as number;
    columns[pick] = columns[row] as number;
    data[row * n + column] = random() < 0.5 ? -1 : 1;
  }
  return device.tensor('f32', data, [n, n]);
}

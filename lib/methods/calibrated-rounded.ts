import { isLatent, LatentExperts, type LatentOperator, OPERATORS, type Operator } from '../experts.ts';
import type { Tensor } from '../tensor.ts';
import { calibrated } from './calibrated.ts';
import { type Method, withExperts } from './method.ts';
import { blockBytes, roundBlocks } from './rounding.ts';

/** The calibrated method with its factors in blocks of 8 bits. */
export const calibrated8Bits: Method = calibratedRounded(8);

/** The calibrated method with its factors in blocks of 4 bits. */
export const calibrated4Bits: Method = calibratedRounded(4);

/**
 * Calibrated factors, rounded as plain quantization rounds dense experts: what both save together. Run with the values that
 * are read back; neither the converted format nor the kernels know such blocks yet.
 */
function calibratedRounded(bits: 8 | 4): Method {
  return {
    ...calibrated,
    name: `calibrated-q${bits}`,
    summary: `calibrated, its factors rounded to ${bits} bits in blocks of 32`,
    async prepare(request) {
      const compressor = await calibrated.prepare(request);
      return {
        ...compressor,
        async compress(layer) {
          const exact = await compressor.compress(layer);
          try {
            const experts = await roundFactors(exact.block.experts as LatentExperts, bits);
            const { expertParameters, flopsPerToken } = exact;
            return withExperts(layer, experts, {
              expertParameters,
              expertBytes: factorBytes(experts, bits),
              flopsPerToken,
            });
          } finally {
            exact.dispose();
          }
        },
      };
    },
  };
}

async function roundFactors(latent: LatentExperts, bits: 8 | 4): Promise<LatentExperts> {
  const owned: Tensor[] = [];
  const rounded = async (tensors: readonly Tensor[]) => {
    const made: Tensor[] = [];
    for (const tensor of tensors) {
      const blocks = await roundBlocks(tensor, bits);
      owned.push(blocks);
      made.push(blocks);
    }
    return made;
  };
  try {
    const operators = {} as Record<Operator, LatentOperator>;
    for (const operator of OPERATORS) {
      const { a, b } = latent[operator] as LatentOperator;
      operators[operator] = { a: await rounded(a), b: await rounded(b) };
    }
    const { groups, activation, sharedExpert } = latent;
    return new LatentExperts({ groups, ...operators, activation, sharedExpert, owned });
  } catch (error) {
    for (const tensor of owned) tensor.dispose();
    throw error;
  }
}

function factorBytes(latent: LatentExperts, bits: 8 | 4): number {
  return OPERATORS.map((operator) => latent[operator])
    .filter(isLatent)
    .flatMap(({ a, b }) => [...a, ...b])
    .reduce((sum, tensor) => sum + blockBytes(tensor, bits), 0);
}

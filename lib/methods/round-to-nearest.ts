import { DenseExperts, OPERATORS, type Operator } from '../experts.ts';
import type { Tensor } from '../tensor.ts';
import { type Method, withExperts } from './method.ts';
import { BLOCK, blockBytes, roundBlocks } from './rounding.ts';
import { costsOf } from './sizes.ts';

/** llama.cpp's q8_0: blocks of 32 along the inputs, an f16 scale each, 8.5 bits a weight. */
export const roundTo8Bits: Method = roundToNearest(8);

/** llama.cpp's q4_0: the same with 4 bits, 4.5 bits a weight. */
export const roundTo4Bits: Method = roundToNearest(4);

/** Plain quantization of the dense experts: what a user of llama.cpp has. Run here with the values that are read back. */
function roundToNearest(bits: 8 | 4): Method {
  return {
    name: `q${bits}`,
    summary: `the dense experts rounded to ${bits} bits in blocks of ${BLOCK}`,
    grouped: false,
    weightsOnly: true,
    ownWidth: true,
    check() {},
    prepare: async () => ({
      async compress(layer) {
        const original = layer.block.experts as DenseExperts;
        const experts = await roundExperts(original, bits);
        const costs = costsOf(experts, layer.block.spec.topK);
        return withExperts(layer, experts, { ...costs, expertBytes: quantizedBytes(original, bits) });
      },
    }),
  };
}

async function roundExperts(experts: DenseExperts, bits: 8 | 4): Promise<DenseExperts> {
  const owned: Tensor[] = [];
  const rounded = async (operator: Operator) => {
    const made: Tensor[] = [];
    for (const tensor of experts[operator]) {
      made.push(await roundBlocks(tensor, bits));
      owned.push(made.at(-1) as Tensor);
    }
    return made;
  };
  try {
    const [gate, up, down] = [await rounded('gate'), await rounded('up'), await rounded('down')];
    return new DenseExperts({ ...experts, gate, up, down, owned });
  } catch (error) {
    for (const tensor of owned) tensor.dispose();
    throw error;
  }
}

function quantizedBytes(experts: DenseExperts, bits: 8 | 4): number {
  return OPERATORS.flatMap((operator) => experts[operator]).reduce(
    (sum, matrix) => sum + blockBytes(matrix, bits),
    0,
  );
}

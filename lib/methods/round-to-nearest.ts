import { BLOCK, type BlockDType } from '../dtype.ts';
import { quantizeExperts } from '../quantize.ts';
import { denseExperts, replaceExperts } from './experts.ts';
import type { Method } from './method.ts';

/** llama.cpp's q8_0: blocks of 32 along the inputs, an f16 scale each, 8.5 bits a weight. */
export const roundTo8Bits: Method = roundToNearest('q8');

/** llama.cpp's q4_0: the same with 4 bits, 4.5 bits a weight. */
export const roundTo4Bits: Method = roundToNearest('q4');

/** Plain quantization of the dense experts: what a user of llama.cpp has. */
function roundToNearest(dtype: BlockDType): Method {
  return {
    name: dtype,
    summary: `the dense experts rounded to ${dtype === 'q8' ? 8 : 4} bits in blocks of ${BLOCK}`,
    grouped: false,
    weightsOnly: true,
    ownWidth: true,
    check() {},
    prepare: async () => ({
      async compress(layer) {
        const experts = await quantizeExperts(denseExperts(layer), dtype);
        return replaceExperts(layer, experts);
      },
    }),
  };
}

import type { BlockDType } from '../dtype.ts';
import type { LatentExperts } from '../experts.ts';
import { quantizeExperts } from '../quantize.ts';
import { calibrated } from './calibrated.ts';
import { type Method, withExperts } from './method.ts';
import { costsOf } from './sizes.ts';

/** The calibrated method with its factors in blocks of 8 bits. */
export const calibrated8Bits: Method = calibratedRounded('q8');

/** The calibrated method with its factors in blocks of 4 bits. */
export const calibrated4Bits: Method = calibratedRounded('q4');

/** Calibrated factors, rounded as plain quantization rounds dense experts: what both save together. */
function calibratedRounded(dtype: BlockDType): Method {
  return {
    ...calibrated,
    name: `calibrated-${dtype}`,
    summary: `calibrated, its factors rounded to ${dtype === 'q8' ? 8 : 4} bits in blocks of 32`,
    async prepare(request) {
      const compressor = await calibrated.prepare(request);
      return {
        ...compressor,
        async compress(layer) {
          const exact = await compressor.compress(layer);
          try {
            const experts = await quantizeExperts(exact.block.experts as LatentExperts, dtype);
            return withExperts(layer, experts, costsOf(experts, layer.block.spec.topK));
          } finally {
            exact.dispose();
          }
        },
      };
    },
  };
}

import type { BlockDType } from '../../dtype.ts';
import { expected } from '../../errors.ts';
import { factorizeCalibrated } from '../../factorization/calibrated.ts';
import type { CalibratedSteps } from '../../factorization/calibrated-group.ts';
import type { FactorStorage } from '../../factorization/factors.ts';
import type { Partition } from '../../factorization/groups.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import { OPERATORS } from '../../operators.ts';
import { denseExperts, replaceExperts } from '../experts.ts';
import type { Compressor, Method, MethodRequest } from '../method.ts';
import { planSizes } from '../sizes.ts';
import { allocateOverLayers, type LayerLatentSizes, stepFor } from './allocation.ts';
import { CALIBRATED_GROUP_SIZE, type CalibratedForm } from './form.ts';

/** Activation-aware bases and factors, with latent sizes where they are worth most. */
export const calibrated: Method = calibratedIn(undefined, {
  name: 'calibrated',
  summary: 'bases and factors fitted to what the experts put out on calibration text; latent sizes by worth',
});

/** The calibrated method with its factors in blocks of 8 bits, each expert's fitted to the rounded basis. */
export const calibrated8Bits: Method = calibratedIn('q8', {
  name: 'calibrated-q8',
  summary: 'calibrated, its factors in blocks of 32 with 8 bits each',
});

/** The calibrated method with its factors in blocks of 4 bits. */
export const calibrated4Bits: Method = calibratedIn('q4', {
  name: 'calibrated-q4',
  summary: 'calibrated, its factors in blocks of 32 with 4 bits each',
});

function calibratedIn(dtype: BlockDType | undefined, named: Pick<Method, 'name' | 'summary'>): Method {
  const quantized = dtype !== undefined;
  return {
    ...named,
    grouped: true,
    check: (request) => checkAllocation(request, quantized),
    async prepare(request) {
      const { groupSize = CALIBRATED_GROUP_SIZE } = request;
      const { latentSizes } = await allocateOverLayers({ ...request, groupSize, quantized });
      const sizesOf = (layer: number) => latentSizes.get(layer) as LayerLatentSizes;
      return calibratedCompressor(request, { groupSize }, sizesOf, { dtype });
    },
  };
}

/** The same with one latent size everywhere. */
export const calibratedUniform: Method = {
  name: 'calibrated-uniform',
  summary: 'calibrated, with the same latent size everywhere',
  grouped: true,
  check: (request) => void planSizes(request),
  async prepare(request) {
    const { groupSize, latentSize } = planSizes(request);
    return calibratedCompressor(request, { groupSize }, () => latentSize);
  },
};

function checkAllocation(request: MethodRequest, quantized: boolean): void {
  const { groupSize, latentSize } = planSizes({
    ...request,
    groupSize: request.groupSize ?? CALIBRATED_GROUP_SIZE,
  });
  const least = stepFor(request.model.checkpoint.spec.hiddenSize, quantized);
  if (latentSize >= least) return;
  const wanted = `a share that leaves a latent size of ${least} with groupSize ${groupSize}`;
  throw expected(wanted, 'targetRatio', request.targetRatio);
}

interface CompressorGroups {
  /** Of a layer; by default consecutive experts. */
  readonly groupsOf?: ((layer: number) => Partition) | undefined;
}

/** Makes latent experts of a form, layer by layer. */
export function calibratedCompressor(
  { signal }: Pick<MethodRequest, 'signal'>,
  { groupSize, groupsOf, operators = OPERATORS, sharedGateUp }: CalibratedForm & CompressorGroups,
  latentSize: (layer: number) => number | LayerLatentSizes,
  steps: CalibratedSteps & FactorStorage = {},
): Compressor {
  return {
    groupSize,
    async compress(layer: CalibrationLayer) {
      const experts = await factorizeCalibrated(denseExperts(layer), layer, {
        ...steps,
        ...(groupsOf ? { groups: groupsOf(layer.layer) } : { groupSize }),
        sharedGateUp,
        operators,
        latentSize: latentSize(layer.layer),
        signal,
      });
      return replaceExperts(layer, experts);
    },
  };
}

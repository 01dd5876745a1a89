import { type CalibratedSteps, calibratedSpectra, factorizeCalibrated } from '../calibrated.ts';
import { expected } from '../errors.ts';
import type { DenseExperts, Operator } from '../experts.ts';
import { allocateLatentSizes, type Spending } from '../latent-sizes.ts';
import { type CalibrationLayer, calibrate } from '../model/calibration.ts';
import { type Method, type MethodRequest, withExperts } from './method.ts';
import { costsOf, planSizes } from './sizes.ts';

/** Latent sizes of the groups of a layer. */
export type LayerLatentSizes = Record<Operator, number[]>;

/** Activation-aware bases and factors, with latent sizes where they are worth most. */
export const calibrated: Method = {
  name: 'calibrated',
  summary: 'bases and factors fitted to what the experts put out on calibration text; latent sizes by worth',
  grouped: true,
  check: checkAllocation,
  async prepare(request) {
    const { groupSize } = planSizes(request);
    const sizes = await allocateOverLayers(request, groupSize);
    return compressor(request, groupSize, (layer) => sizes.get(layer) as LayerLatentSizes);
  },
};

/** The same with one latent size everywhere. */
export const calibratedUniform: Method = {
  name: 'calibrated-uniform',
  summary: 'calibrated, with the same latent size everywhere',
  grouped: true,
  check: (request) => void planSizes(request),
  async prepare(request) {
    const { groupSize, latentSize } = planSizes(request);
    return compressor(request, groupSize, () => latentSize);
  },
};

function checkAllocation(request: MethodRequest): void {
  const { groupSize, latentSize } = planSizes(request);
  const least = stepFor(request.model.checkpoint.spec.hiddenSize);
  if (latentSize >= least) return;
  const wanted = `a share that leaves a latent size of ${least} with groupSize ${groupSize}`;
  throw expected(wanted, 'targetRatio', request.targetRatio);
}

function compressor(
  { signal }: MethodRequest,
  groupSize: number,
  latentSize: (layer: number) => number | LayerLatentSizes,
  steps: CalibratedSteps = {},
) {
  return {
    groupSize,
    async compress(layer: CalibrationLayer) {
      const experts = await factorizeCalibrated(layer.block.experts as DenseExperts, layer, {
        ...steps,
        groupSize,
        latentSize: latentSize(layer.layer),
        signal,
      });
      return withExperts(layer, experts, costsOf(experts, layer.block.spec.topK));
    },
  };
}

/**
 * Spends the parameters that the target leaves over all layers, operators and groups, by a pass over the calibration text
 * that looks at every spectrum. Squared output counts alike in all layers: weighing it by the size of the residual stream
 * gained nothing where it was measured (docs/choosing.md).
 */
export async function allocateOverLayers(
  { model, calibration, window, targetRatio, signal }: MethodRequest,
  groupSize: number,
): Promise<Map<number, LayerLatentSizes>> {
  const { hiddenSize: n, intermediateSize: m, numExperts, layers } = model.checkpoint.spec;
  const spendings: Spending[] = [];
  await calibrate(
    model,
    calibration,
    async (layer) => {
      const experts = layer.block.experts as DenseExperts;
      for (const spectrum of await calibratedSpectra(experts, layer, { groupSize, signal })) {
        const limit = Math.min(n, groupSize * m);
        const values = spectrum.values.subarray(0, limit);
        spendings.push({ ...spectrum, values, layer: layer.layer, cost: groupSize * m + n });
      }
      return undefined;
    },
    { window, signal },
  );
  const budget = Math.floor((1 - targetRatio) * 3 * layers.length * numExperts * m * n);
  const sizes = allocateLatentSizes(spendings, { budget, step: stepFor(n) });
  const byLayer = new Map<number, LayerLatentSizes>(
    layers.map((layer) => [layer, { gate: [], up: [], down: [] }]),
  );
  for (const [index, { layer, operator, group }] of spendings.entries()) {
    (byLayer.get(layer) as LayerLatentSizes)[operator][group] = sizes[index] as number;
  }
  return byLayer;
}

/** Latent sizes that kernels like, and fine enough for small models. */
function stepFor(hiddenSize: number): number {
  return hiddenSize >= 1024 ? 16 : 8;
}

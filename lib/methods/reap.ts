import { expected } from '../errors.ts';
import { DenseExperts } from '../experts.ts';
import type { CalibrationLayer } from '../model/calibration-layer.ts';
import { MoeBlock } from '../moe-block.ts';
import type { Operator } from '../operators.ts';
import type { RouterSpec } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import { rowNorms } from './arithmetic.ts';
import { type ExpertTokens, expertOutputs, gatherRows, tokensByExpert } from './expert-tokens.ts';
import { denseExperts } from './experts.ts';
import type { CompressedLayer, Method, MethodRequest } from './method.ts';
import { costsOf, planExperts } from './sizes.ts';

/**
 * REAP (arXiv 2510.13999): the experts with the least router-weighted activation go, that is the mean over an expert's
 * calibration tokens of its routing weight times the norm of its output. The router loses their rows and chooses as many
 * experts a token as before; what softmax gave to those that went, the others share.
 *
 * Simplified: the same number goes from every layer, and nothing is trained afterwards. Where the router chooses groups of
 * experts first (DeepSeek), the same number goes from each.
 */
export const reap: Method = {
  name: 'reap',
  summary: 'REAP: experts with the least router-weighted activation are pruned',
  grouped: false,
  check: (request) => void keptInRun(request),
  async prepare(request) {
    const kept = keptInRun(request);
    return {
      async compress(layer) {
        const saliency = await routerWeightedActivation(layer);
        return prune(layer, mostSalient(saliency, kept, layer.block.spec));
      },
    };
  },
};

/** Experts that stay of every run of experts that the router treats alike: all of them, or one of its groups. */
function keptInRun(request: MethodRequest): number {
  const { numExperts, topK, router } = request.model.checkpoint.spec;
  const { numGroups = 1, chosenGroups = 1 } = router.groupLimit ?? {};
  const inRun = Math.floor(planExperts(request, topK) / numGroups);
  if (inRun * chosenGroups < topK || (router.groupLimit?.score === 'top2' && inRun < 2)) {
    throw expected(
      `a share that leaves ${topK} of ${numExperts} experts in ${chosenGroups} of ${numGroups} groups`,
      'targetRatio',
      request.targetRatio,
    );
  }
  return inRun;
}

/** Mean over its tokens of an expert's routing weight times the norm of its output; 0 where no token came. */
export async function routerWeightedActivation(layer: CalibrationLayer): Promise<number[]> {
  const experts = denseExperts(layer);
  const tokens = await tokensByExpert(layer.routing, experts.numExperts);
  const saliency: number[] = [];
  for (const [expert, own] of tokens.entries())
    saliency.push(await activationOf(experts, expert, layer.x, own));
  return saliency;
}

async function activationOf(
  experts: DenseExperts,
  expert: number,
  x: Tensor<'f32'>,
  { rows, weights }: ExpertTokens,
): Promise<number> {
  if (rows.length === 0) return 0;
  const [gate, up, down] = [experts.gate, experts.up, experts.down].map((all) => all[expert] as Tensor);
  using inputs = await gatherRows(x, rows);
  using outputs = await expertOutputs(
    { gate, up, down } as Record<Operator, Tensor>,
    experts,
    inputs,
    weights,
  );
  const norms = await rowNorms(outputs);
  return norms.reduce((sum, norm) => sum + norm, 0) / rows.length;
}

/** The `kept` best of every run, ascending. */
function mostSalient(saliency: readonly number[], kept: number, { groupLimit }: RouterSpec): number[] {
  const length = saliency.length / (groupLimit?.numGroups ?? 1);
  const experts = saliency.map((_, expert) => expert);
  const runs = Array.from({ length: saliency.length / length }, (_, run) =>
    experts.slice(run * length, (run + 1) * length),
  );
  const value = (expert: number) => saliency[expert] as number;
  return runs.flatMap((run) =>
    run
      .sort((a, b) => value(b) - value(a) || a - b)
      .slice(0, kept)
      .sort((a, b) => a - b),
  );
}

async function prune(layer: CalibrationLayer, survivors: readonly number[]): Promise<CompressedLayer> {
  const { block } = layer;
  const experts = denseExperts(layer);
  const rows = Int32Array.from(survivors);
  const of = (all: readonly Tensor[]) => survivors.map((expert) => all[expert] as Tensor);
  const left = new DenseExperts({
    ...experts,
    gate: of(experts.gate),
    up: of(experts.up),
    down: of(experts.down),
    owned: [],
  });
  const router = await gatherRows(block.router, rows);
  const correctionBias = block.correctionBias && (await gatherBias(block.correctionBias, rows));
  return {
    block: new MoeBlock({ router, correctionBias, spec: block.spec, experts: left }),
    ...costsOf(left, block.spec.topK),
    dispose() {
      router.dispose();
      correctionBias?.dispose();
      left.dispose();
    },
  };
}

async function gatherBias(bias: Tensor<'f32'>, rows: Int32Array): Promise<Tensor<'f32'>> {
  using column = bias.reshape([bias.length, 1]);
  using gathered = await gatherRows(column, rows);
  return gathered.reshape([rows.length]);
}

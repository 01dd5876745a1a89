import { namingTensor } from '../../checkpoint/non-finite-tensor.ts';
import { elementBytes } from '../../dtype.ts';
import type { LatentExperts } from '../../experts.ts';
import {
  type CalibratedGroupSource,
  calibratedPasses,
  factorizeCalibratedGroup,
  type LayerInputs,
} from '../../factorization/calibrated-group.ts';
import { GatheredFactors } from '../../factorization/factors.ts';
import { madeAhead } from '../../made-ahead.ts';
import { stepsOf } from '../../methods/calibrated/search.ts';
import { denseExperts } from '../../methods/experts.ts';
import { calibrateParts, type TextParts } from '../../model/calibration.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import { fewestAndMedian, layerCoverage } from '../../model/coverage.ts';
import type { Model } from '../../model/model.ts';
import { expertCounts } from '../../model/routing-statistics.ts';
import { defaultWindow } from '../../model/windows.ts';
import type { FactorShapes, GroupFactors, LayerMethod, LayerWriter, StepListener } from '../layer-method.ts';
import { GroupUseCounter, type GroupUseReport } from './group-use.ts';
import type { CalibratedConversionOptions } from './options.ts';
import { fingerprintOf, provenanceOf, type SizeChoice, shapesOf } from './size-choice.ts';

/** How the text covers the experts. */
export interface CalibrationCoverage {
  readonly tokens: number;
  readonly window: number;
  /** The fewest tokens that an expert saw, over all layers converted by this run. */
  readonly fewestTokens: number;
  readonly medianTokens: number;
  /** Experts that no token reached, as [layer, expert]. */
  readonly unusedExperts: readonly (readonly [number, number])[];
}

/** The calibrated factorization, layer by layer on what the text brings to each. */
export class CalibratedMethod implements LayerMethod {
  readonly name = 'calibrated';
  readonly shapes: FactorShapes;
  readonly reason: string | undefined;
  readonly fingerprint: unknown;
  readonly stepsPerLayer: number;
  readonly memory: unknown;
  readonly provenance: Readonly<Record<string, unknown>>;
  readonly #sharedGateUp: boolean;
  readonly #model: Model;
  readonly #options: CalibratedConversionOptions;
  readonly #text: TextParts;
  readonly #counts = new Map<number, Float64Array>();
  readonly #use: GroupUseCounter;

  constructor(model: Model, options: CalibratedConversionOptions, choice: SizeChoice, text: TextParts) {
    const { calibration, window } = options;
    this.#model = model;
    this.#options = options;
    this.#text = text;
    this.reason = choice.reason;
    this.memory = choice.memory;
    this.provenance = provenanceOf(options, choice);
    this.shapes = shapesOf(choice, model.checkpoint.spec.numExperts, options.quantize);
    this.#use = new GroupUseCounter(model.checkpoint.spec, this.shapes, (layer) =>
      elementBytes(model.checkpoint.expertDtype(layer, 'gate')),
    );
    this.#sharedGateUp = choice.sharedGateUp;
    this.fingerprint = {
      ids: fingerprintOf(calibration),
      parts: text.length,
      window,
      steps: stepsOf(options),
      sequential: options.sequential,
      device: model.device.info.kind,
    };
    this.stepsPerLayer = calibratedPasses(options) * model.checkpoint.spec.numExperts;
  }

  get coverage(): CalibrationCoverage {
    const { calibration, window = defaultWindow(this.#model) } = this.#options;
    const layers = [...this.#counts].map(([layer, counts]) => layerCoverage(layer, counts));
    return {
      tokens: calibration.length,
      window,
      ...fewestAndMedian(layers.flatMap(({ expertTokens }) => expertTokens)),
      unusedExperts: layers.flatMap(({ layer, unusedExperts }) =>
        unusedExperts.map((expert) => [layer, expert] as const),
      ),
    };
  }

  get groupUse(): GroupUseReport | undefined {
    return this.#use.report;
  }

  async run(wanted: readonly number[], write: LayerWriter, step: StepListener): Promise<void> {
    const { window, signal, sequential = false } = this.#options;
    const left = new Set(wanted);
    const substitutes: LatentExperts[] = [];
    try {
      await calibrateParts(
        this.#model,
        this.#text,
        async (layer) => {
          await this.#use.count(layer);
          const isWanted = left.delete(layer.layer);
          if (!isWanted && !sequential) return undefined;
          const { numExperts } = this.#model.checkpoint.spec;
          this.#counts.set(layer.layer, await expertCounts(layer.routing, numExperts));
          const made = new GatheredFactors();
          try {
            const counted = isWanted ? step : () => {};
            const groups = this.#factorize(layer, counted, sequential ? made : undefined);
            await namingTensor(this.#model.checkpoint, layer.layer, async () => {
              if (isWanted) await write(layer.layer, groups);
              else for await (const _ of groups); // written by an earlier run: only what follows needs it
            });
            if (!sequential) return undefined;
            for (const earlier of substitutes.splice(0)) earlier.dispose();
            const experts = made.experts(denseExperts(layer), this.shapes.groups(layer.layer));
            substitutes.push(experts);
            return experts;
          } catch (error) {
            made.dispose();
            throw error;
          }
        },
        { window, signal },
      );
    } finally {
      for (const experts of substitutes) experts.dispose();
    }
  }

  /**
   * `keep` takes the factors over; otherwise they are let go of once they are written. While those of a group are, the next one is
   * factorized.
   */
  #factorize(
    layer: CalibrationLayer,
    step: StepListener,
    keep: GatheredFactors | undefined,
  ): AsyncIterable<GroupFactors> {
    const groups = this.shapes.groups(layer.layer);
    return madeAhead(
      groups.length,
      async (group) => {
        const made = await this.#factorizeGroup(layer, group, groups[group] as readonly number[], step);
        keep?.add(made.factors);
        return made;
      },
      ({ factors }) => {
        if (keep) return;
        for (const [, { a, b }] of factors) for (const tensor of [a, b]) tensor.dispose();
      },
    );
  }

  async #factorizeGroup(
    { layer, block, x, routing }: CalibrationLayer,
    group: number,
    members: readonly number[],
    step: StepListener,
  ): Promise<GroupFactors> {
    const inputs: LayerInputs = { x, routing };
    const options = {
      ...this.#options,
      sharedGateUp: this.#sharedGateUp,
      dtype: this.shapes.quantization,
    };
    const source: CalibratedGroupSource = {
      experts: denseExperts({ block }),
      inputs,
      group,
      members,
      sizes: (operator) =>
        this.shapes.operators.includes(operator) ? this.shapes.latentSize(layer, operator, group) : undefined,
    };
    const at = { layer, operator: 'gate', group } as const;
    return { group, factors: await factorizeCalibratedGroup(source, options, () => step(at)) };
  }
}

import { namingTensor } from '../checkpoint/non-finite-tensor.ts';
import { MolaeError } from '../errors.ts';
import { calibrate } from '../model/calibration.ts';
import type { Model } from '../model/model.ts';
import type { CompressedLayer, Compressor, ExpertCosts } from './method.ts';

/** @internal Throws unless all layers of the model are dense and in memory: what replaces one uses parts of it later. */
export function checkDenseModel({ streams, checkpoint }: Model): void {
  if (streams) {
    throw new MolaeError('INVALID_ARGUMENT', 'A comparison needs a model with all layers in memory');
  }
  if (checkpoint.format === 'dense') return;
  throw new MolaeError('UNSUPPORTED_CHECKPOINT', `${checkpoint.path} was converted: it has no dense experts`);
}

/** Compresses all MoE layers of a model, in memory, by a pass over the text. */
export async function compressModel(
  model: Model,
  compressor: Compressor,
  ids: ArrayLike<number>,
  options: { readonly window?: number | undefined; readonly signal?: AbortSignal | undefined },
): Promise<CompressedModel> {
  const layers = new Map<number, CompressedLayer>();
  const compressed = new CompressedModel(model, layers);
  try {
    await calibrate(
      model,
      ids,
      async (layer) => {
        const compress = () => compressor.compress(layer);
        layers.set(layer.layer, await namingTensor(model.checkpoint, layer.layer, compress));
        return undefined;
      },
      options,
    );
    return compressed;
  } catch (error) {
    compressed.dispose();
    throw error;
  }
}

/** What stands in for the experts of a model. */
export class CompressedModel {
  readonly #model: Model;
  readonly #layers: ReadonlyMap<number, CompressedLayer>;

  constructor(model: Model, layers: ReadonlyMap<number, CompressedLayer>) {
    this.#model = model;
    this.#layers = layers;
  }

  /** Of all layers. */
  get costs(): ExpertCosts {
    const total = (cost: keyof ExpertCosts) =>
      [...this.#layers.values()].reduce((sum, layer) => sum + layer[cost], 0);
    return {
      expertParameters: total('expertParameters'),
      expertBytes: total('expertBytes'),
      flopsPerToken: total('flopsPerToken'),
    };
  }

  /** Has the model run with it while `use` runs. Throws where the model runs with another already. */
  async run<Result>(use: () => Promise<Result>): Promise<Result> {
    const substituted: number[] = [];
    try {
      for (const [layer, { block }] of this.#layers) {
        this.#model.substitute(layer, block);
        substituted.push(layer);
      }
      return await use();
    } finally {
      for (const layer of substituted) this.#model.substitute(layer, undefined);
    }
  }

  /** The model stays as it was. */
  dispose(): void {
    for (const layer of this.#layers.values()) layer.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

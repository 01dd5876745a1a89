import { readdir } from 'node:fs/promises';
import { ModelConfig } from '../checkpoint/config.ts';
import { describeConfig } from '../checkpoint/families/index.ts';
import type { MoeSpec } from '../checkpoint/family.ts';
import { LATENT_MODEL_TYPE } from '../checkpoint/latent-format.ts';
import { readQuantization } from '../checkpoint/quantization.ts';
import { openDense } from '../conversion/source.ts';
import { elementBytes } from '../dtype.ts';

/** What is known of a model whose conversion is planned. */
export interface PlannedModel {
  /** The folder. */
  readonly path: string;
  readonly spec: MoeSpec;
  /** Bytes of an element of the routed experts as they are read. */
  readonly bytesPerParameter: number;
  /** Parameters beside the routed experts'; undefined where there is but a config. */
  readonly otherParameters: number | undefined;
  /** Bytes of all tensors; of the routed experts alone where there is but a config. */
  readonly byteLength: number;
  readonly quantized: boolean;
}

/** Reads a checkpoint, or its config.json where the folder has no weights. Throws as `openDense`. */
export async function readPlannedModel(path: string): Promise<PlannedModel> {
  return (await readConfigAlone(path)) ?? (await readCheckpoint(path));
}

async function readCheckpoint(path: string): Promise<PlannedModel> {
  await using checkpoint = await openDense(path);
  const { spec, parameters, expertParameters, byteLength, expertScales } = checkpoint;
  return {
    path: checkpoint.path,
    spec,
    bytesPerParameter: elementBytes(checkpoint.expertDtype(spec.layers[0] as number, 'gate')),
    otherParameters: parameters - expertParameters,
    byteLength,
    quantized: expertScales.size > 0,
  };
}

/** Undefined where there are weights, or no config of a model that can be converted: then opening it says what is wrong. */
async function readConfigAlone(path: string): Promise<PlannedModel | undefined> {
  const names: string[] = await readdir(path).catch(() => []);
  if (!names.includes('config.json') || names.some((name) => name.endsWith('.safetensors'))) return undefined;
  const config = await ModelConfig.read(path);
  if (config.value('model_type') === LATENT_MODEL_TYPE) return undefined;
  const spec = describeConfig(config.raw, config.file);
  if (spec.layers.length === 0) return undefined;
  const bytesPerParameter = declaredBytes(config);
  const { hiddenSize, intermediateSize, numExperts, layers } = spec;
  return {
    path,
    spec,
    bytesPerParameter,
    otherParameters: undefined,
    byteLength: 3 * hiddenSize * intermediateSize * numExperts * layers.length * bytesPerParameter,
    quantized: readQuantization(config) !== undefined,
  };
}

/** Of the dtype that the config names; 2 (bf16, f16) where it names none. */
function declaredBytes(config: ModelConfig): number {
  const dtype = config.value('dtype') ?? config.value('torch_dtype');
  if (dtype === 'float64') return elementBytes('f64');
  return elementBytes(dtype === 'float32' ? 'f32' : 'bf16');
}

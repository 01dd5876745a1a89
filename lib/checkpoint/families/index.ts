import { ModelConfig } from '../config.ts';
import type { DecoderSpec } from '../decoder-spec.ts';
import type { Family, MoeSpec } from '../family.ts';
import type { JsonObject } from '../json.ts';
import { LATENT_MODEL_TYPE } from '../latent-format.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from '../problems.ts';
import { deepseekV2 } from './deepseek_v2.ts';
import { deepseekV3 } from './deepseek_v3.ts';
import { ernie45Moe } from './ernie4_5_moe.ts';
import { dots1, glm4Moe } from './glm4_moe.ts';
import { graniteMoe } from './granitemoe.ts';
import { minimaxM2 } from './minimax_m2.ts';
import { mixtral } from './mixtral.ts';
import { flexOlmo, olmoe } from './olmoe.ts';
import { phimoe } from './phimoe.ts';
import { qwen2Moe } from './qwen2_moe.ts';
import { qwen3Moe } from './qwen3_moe.ts';
import { qwen3Next } from './qwen3_next.ts';

const ALL: readonly Family[] = [
  qwen2Moe,
  qwen3Moe,
  qwen3Next,
  olmoe,
  flexOlmo,
  mixtral,
  phimoe,
  graniteMoe,
  minimaxM2,
  deepseekV2,
  deepseekV3,
  glm4Moe,
  dots1,
  ernie45Moe,
];

/** The model families that molae converts, by `model_type`; those with a `decoder` it also runs. */
export const FAMILIES: ReadonlyMap<string, Family> = new Map(ALL.map((family) => [family.modelType, family]));

/** The `model_type` of a config or, for one that molae converted, of its source. */
export function baseModelType(config: ModelConfig): string {
  const modelType = config.string('model_type');
  if (modelType !== LATENT_MODEL_TYPE) return modelType;
  const base = config.string('base_model_type');
  if (base === LATENT_MODEL_TYPE)
    throw badCheckpoint(config.file, `base_model_type is ${quote(base)} itself`);
  return base;
}

/**
 * The family of a config.
 *
 * @throws UNSUPPORTED_CHECKPOINT listing the known ones.
 */
export function familyOf(config: ModelConfig): Family {
  const modelType = baseModelType(config);
  const family = FAMILIES.get(modelType);
  if (family === undefined) {
    const known = [...FAMILIES.keys()].join(', ');
    throw unsupportedCheckpoint(
      config.file,
      `model family ${quote(modelType)} is not supported; supported are ${known}`,
    );
  }
  return family;
}

/** The sizes that a config.json's object gives, by its family; `file` is where it came from, for messages. */
export function describeConfig(raw: JsonObject, file?: string): MoeSpec {
  const config = new ModelConfig(raw, file);
  return familyOf(config).describe(config);
}

/**
 * What is needed to run the whole model of a config, by its family.
 *
 * @throws UNSUPPORTED_CHECKPOINT for a family that molae converts but cannot run, or an option of one that it lacks;
 * BAD_CHECKPOINT for a missing or senseless field.
 */
export function describeDecoder(config: ModelConfig): DecoderSpec {
  const { modelType, decoder } = familyOf(config);
  if (decoder) return decoder(config);
  throw unsupportedCheckpoint(
    config.file,
    `molae converts ${modelType} checkpoints, but cannot run them yet`,
  );
}

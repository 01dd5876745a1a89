import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { JsonObject } from '../checkpoint/json.ts';
import { buildLatentConfig, LATENT_FORMAT_VERSION } from '../checkpoint/latent-format.ts';
import type { LayerMethod } from './layer-method.ts';

/** The config.json of a latent output. Readers of the format ignore what they do not know in the `molae` block. */
export function latentConfig(
  { config, spec }: Checkpoint,
  { name, shapes, provenance }: LayerMethod,
): JsonObject {
  const { groups, operators, quantization } = shapes;
  const latent = buildLatentConfig(config, {
    version: LATENT_FORMAT_VERSION,
    method: name,
    operators,
    quantization,
    groups: new Map(spec.layers.map((layer) => [layer, groups(layer)])),
  });
  if (provenance === undefined) return latent;
  return { ...latent, molae: { ...(latent.molae as JsonObject), provenance } };
}

/** The source's config for an output in which nothing is quantized any more. */
export function expandedConfig({ config: { quantization_config: _, ...rest } }: Checkpoint): JsonObject {
  return rest;
}

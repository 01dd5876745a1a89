import type { ModelConfig } from './config.ts';
import { familyOf } from './families/index.ts';
import type { Family, MoeSpec } from './family.ts';
import { storedLayout } from './fused-layout.ts';
import { LATENT_MODEL_TYPE, type MolaeBlock, parseMolaeBlock } from './latent-format.ts';
import { type VerifiedLayers, verifyLayers } from './layers.ts';
import { unsupportedCheckpoint } from './problems.ts';
import { readQuantization } from './quantization.ts';
import type { Shards } from './shards.ts';
import { Weights } from './weights.ts';

/** What a checkpoint is found to be. */
export interface Findings {
  /** With the tensors' names as this checkpoint has them. */
  family: Family;
  spec: MoeSpec;
  /** Undefined for a checkpoint that molae did not convert. */
  molae: MolaeBlock | undefined;
  shards: Shards;
  weights: Weights;
  verified: VerifiedLayers;
}

/**
 * Reads off the config what a checkpoint must hold, and holds its tensors against that.
 *
 * @param openShards called once the config is understood.
 * @param found takes what each stage finds out: it is there for the caller where a later stage fails.
 * @throws BAD_CHECKPOINT, UNSUPPORTED_CHECKPOINT; and what `openShards` throws. The shards stay open.
 */
export async function verifyCheckpoint(
  config: ModelConfig,
  openShards: () => Promise<Shards>,
  found: Partial<Findings>,
): Promise<Findings> {
  const published = familyOf(config);
  const spec = published.describe(config);
  found.spec = spec;
  refuseDenseModel(config, spec);
  const quantization = readQuantization(config);
  const molae = config.string('model_type') === LATENT_MODEL_TYPE ? parseMolaeBlock(config, spec) : undefined;
  found.molae = molae;
  const shards = await openShards();
  found.shards = shards;
  const family = storedLayout(published, spec, shards);
  const weights = new Weights(shards, quantization);
  const verified = verifyLayers(shards, weights, family, spec, molae);
  found.verified = verified;
  return { family, spec, molae, shards, weights, verified };
}

/** Refuses a model without experts: there is nothing to convert, and nothing would be said. */
function refuseDenseModel(config: ModelConfig, spec: MoeSpec): void {
  if (spec.layers.length === 0) {
    throw unsupportedCheckpoint(config.file, `none of the ${spec.numLayers} layers is a MoE layer`);
  }
}

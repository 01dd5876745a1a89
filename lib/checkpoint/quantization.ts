import type { ModelConfig } from './config.ts';
import { isJsonObject } from './json.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from './problems.ts';

/**
 * Weights in E4M3 with one scale for each block of rows and columns, kept beside them as `<name>_scale_inv`: DeepSeek-V3,
 * and `quant_method` fp8 of transformers with a `weight_block_size`.
 */
export interface BlockQuantization {
  readonly blockRows: number;
  readonly blockCols: number;
}

/** The tensor with the scales of a quantized one: multiply a block by its entry. */
export function scaleTensorName(name: string): string {
  return `${name}_scale_inv`;
}

/**
 * Reads `quantization_config`, undefined where there is none.
 *
 * @throws UNSUPPORTED_CHECKPOINT for any other kind: reading it as plain weights would give wrong results without a word.
 */
export function readQuantization(config: ModelConfig): BlockQuantization | undefined {
  const quantization = config.optionalObject('quantization_config');
  if (!isJsonObject(quantization)) return undefined;
  const { quant_method: method, weight_block_size: block, fmt = 'e4m3' } = quantization;
  const named = typeof method === 'string' ? ` (${method})` : '';
  if (method !== 'fp8' || block === undefined || block === null) {
    throw unsupportedCheckpoint(
      config.file,
      `quantization_config${named}: quantized weights are supported as fp8 with a weight_block_size only`,
    );
  }
  if (fmt !== 'e4m3') {
    throw unsupportedCheckpoint(config.file, `quantization_config: fmt is ${quote(fmt)}; supported is e4m3`);
  }
  const isSize = (value: unknown): value is number =>
    typeof value === 'number' && Number.isSafeInteger(value) && value >= 1 && value <= 2 ** 20;
  if (!Array.isArray(block) || block.length !== 2 || !block.every(isSize)) {
    throw badCheckpoint(
      config.file,
      `quantization_config: weight_block_size is ${quote(block)}, not two positive integers`,
    );
  }
  const [blockRows, blockCols] = block as [number, number];
  return { blockRows, blockCols };
}

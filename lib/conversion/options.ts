import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { type BlockDType, checkBlockDType } from '../dtype.ts';
import { checkCallback, checkObject, expected, MolaeError, throwIfAborted } from '../errors.ts';
import type { Operator } from '../operators.ts';
import type { SpaceShortage } from './free-space.ts';

/** What every conversion can be told, whatever makes the factors. */
export interface OutputOptions {
  /** `latent` (the default) stores the factors, `dense` A·B under the original names. */
  readonly format?: 'latent' | 'dense' | undefined;
  /**
   * Round the factors to blocks of 8 or 4 bits (`q8`, `q4`), which layers run as they are. Each expert's factors are fitted
   * to the rounded basis. For the latent format; CPU only.
   */
  readonly quantize?: BlockDType | undefined;
  /**
   * Write `modeling_molae.py` and `configuration_molae.py` beside the latent checkpoint, and name them in its config, so that
   * transformers (5 or later) loads it with `trust_remote_code`. Not for quantized weights, of the source or the factors.
   */
  readonly withPython?: boolean | undefined;
  /**
   * Replace an existing checkpoint at the output, if its folder has nothing else, and begin anew what a stopped conversion of another
   * source or with other options left unfinished.
   */
  readonly force?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: ConvertProgress) => void) | undefined;
  /**
   * Called before the first file is written where there seems to be less room than all of them need. The conversion goes on:
   * a file system that compresses has more. One that runs out of room fails with `IO`, and goes on from there when it is run again.
   */
  readonly onSpaceShortage?: ((shortage: SpaceShortage) => void) | undefined;
}

/** How far a conversion is, and the matrix that it has just done. */
export interface ConvertProgress {
  /** Pieces of work so far (expert matrices, in both passes); what a resumed run found finished counts too. */
  readonly done: number;
  readonly total: number;
  readonly layer: number;
  readonly operator: Operator;
  readonly group: number;
}

/** Refuses what no conversion can be asked for, before anything is opened. */
export function checkConversion(output: unknown, options: OutputOptions): void {
  if (typeof output !== 'string' || output === '') throw expected('the path of a folder', 'output', output);
  checkObject(options, 'options');
  checkCallback(options.onProgress, 'onProgress');
  checkCallback(options.onSpaceShortage, 'onSpaceShortage');
  throwIfAborted(options.signal);
}

/** What the output stores: the factors, or A·B under the original names. */
export type OutputFormat = 'latent' | 'dense';

/**
 * The format, where nothing that was asked for contradicts it or the source.
 *
 * @throws MolaeError `INVALID_ARGUMENT`.
 */
export function checkedFormat(checkpoint: Checkpoint, options: OutputOptions): OutputFormat {
  const { format = 'latent' } = options;
  if (format !== 'latent' && format !== 'dense') throw expected('latent or dense', 'format', format);
  checkQuantize(options);
  if (options.withPython) checkPython(checkpoint, options);
  return format;
}

function checkQuantize({ format, quantize }: OutputOptions): void {
  if (quantize === undefined) return;
  checkBlockDType(quantize, 'quantize');
  if (format !== 'dense') return;
  throw new MolaeError(
    'INVALID_ARGUMENT',
    'quantize is for the latent format: dense experts keep the dtype of the source',
  );
}

/** Refuses what transformers could not load. */
function checkPython({ config }: Checkpoint, { format, quantize }: OutputOptions): void {
  if (quantize !== undefined) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'withPython is not for quantized factors: transformers knows no such blocks',
    );
  }
  if (format === 'dense') {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'withPython is for the latent format: transformers loads a dense one as it is',
    );
  }
  if (config.quantization_config !== undefined && config.quantization_config !== null) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'withPython is not for sources with quantized weights: what is not converted stays quantized',
    );
  }
}

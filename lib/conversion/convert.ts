import type { Device } from '../device.ts';
import { checkConversion, type OutputOptions } from './options.ts';
import type { ConversionReport } from './report.ts';
import { runConversion } from './run.ts';
import { withSource } from './source.ts';
import { type SizeOptions, StackedSvd } from './stacked-svd.ts';

/** How `convertCheckpoint` converts, and into what. */
export interface ConvertOptions extends SizeOptions, OutputOptions {
  /** By default `openDevice('auto')`. */
  readonly device?: Device | undefined;
}

/**
 * Converts a checkpoint folder into another one, expert by expert: memory stays at one expert, the eigen-problem of the
 * hidden size (24·n² bytes) and one group's factors, whatever the checkpoint's size.
 *
 * The output appears under its name when it is complete. A run that was stopped goes on where it was when it is called
 * again with the same source and options.
 *
 * @throws MolaeError `INVALID_ARGUMENT`, `BAD_CHECKPOINT`, `UNSUPPORTED_CHECKPOINT`, `OUTPUT_EXISTS`, `OUTPUT_UNFINISHED`,
 * `OUTPUT_BUSY`, `NON_FINITE` naming tensor and position, `ABORTED`, `IO`.
 */
export async function convertCheckpoint(
  input: string,
  output: string,
  options: ConvertOptions,
): Promise<ConversionReport> {
  checkConversion(output, options);
  return withSource(input, options.device, (checkpoint, device) =>
    runConversion(checkpoint, output, options, new StackedSvd(checkpoint, device, options)),
  );
}

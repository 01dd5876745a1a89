import type { OptionDefinition } from './option.ts';

/** Options of the commands that run a model. */

export const TEXT_OPTION: OptionDefinition = {
  name: 'text',
  value: 'file',
  description: 'the text, in UTF-8; - for standard input; required',
};

export const WINDOW_OPTION: OptionDefinition = {
  name: 'window',
  value: 'W',
  description: 'tokens of a window (256, or the context where that is shorter)',
};

/** Sampled by `sampleWindows`. */
export const CALIBRATE_TOKENS_OPTION: OptionDefinition = {
  name: 'calibrate-tokens',
  value: 'T',
  description: 'tokens of the text to use, in whole windows from all over it (one at least)',
};

export const STREAM_OPTION: OptionDefinition = {
  name: 'stream',
  description: 'load one layer at a time, for models larger than memory',
};

/** One of `BLOCK_DTYPES`. */
export const QUANTIZE_OPTION: OptionDefinition = {
  name: 'quantize',
  value: 'blocks',
  description: 'q8 or q4: round the routed experts to 8 or 4 bits as they are loaded (CPU)',
};

import type { Device } from '../device.ts';
import type { NativeSequence } from '../native.ts';
import type { Tensor } from '../tensor.ts';

/** Tokens that go through the model together: some sequences, one after the other, each attending to itself. */
export interface Batch {
  /** Tokens of all sequences. */
  readonly tokens: number;
  /** [tokens] */
  readonly positions: Tensor<'i32'>;
  readonly sequences: readonly NativeSequence[];
}

/** A batch of whole sequences, such as evaluation windows, from their lengths. */
export function batchOfSequences(device: Device, lengths: readonly number[]): Batch {
  const tokens = lengths.reduce((sum, length) => sum + length, 0);
  const positions = new Int32Array(tokens);
  let begin = 0;
  const sequences = lengths.map((length): NativeSequence => {
    for (let i = 0; i < length; i++) positions[begin + i] = i;
    const end = begin + length;
    const sequence = [begin, end, begin, end] as const;
    begin = end;
    return sequence;
  });
  return { tokens, positions: device.tensor('i32', positions), sequences };
}

/** The next `tokens` tokens of one sequence of which `past` are in the cache. */
export function batchAfter(device: Device, past: number, tokens: number): Batch {
  const positions = Int32Array.from({ length: tokens }, (_, i) => past + i);
  return { tokens, positions: device.tensor('i32', positions), sequences: [[0, tokens, 0, past + tokens]] };
}

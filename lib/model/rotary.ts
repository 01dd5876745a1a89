import type { Rotary } from '../checkpoint/decoder-spec.ts';

/** The angle per position of each rotated pair, θ^(−2j/size) before scaling, in radians. */
export function rotaryFrequencies({ theta, size, scaling }: Rotary): Float32Array {
  const plain = Array.from({ length: size / 2 }, (_, j) => theta ** ((-2 * j) / size));
  switch (scaling.type) {
    case 'default':
      return Float32Array.from(plain);
    case 'linear':
      return Float32Array.from(plain, (frequency) => frequency / scaling.factor);
    case 'llama3':
      return Float32Array.from(plain, (frequency) => {
        // Wavelengths beyond the original context are stretched, short ones kept, those between blended.
        const turns = (scaling.originalContextLength * frequency) / (2 * Math.PI);
        const { lowFrequencyFactor: low, highFrequencyFactor: high, factor } = scaling;
        const kept = Math.min(1, Math.max(0, (turns - low) / (high - low)));
        return kept * frequency + ((1 - kept) * frequency) / factor;
      });
    case 'yarn': {
      // Peng et al. 2023 (arXiv 2309.00071): pairs that turn often are kept, those that hardly turn are stretched.
      const pairAt = (turns: number) =>
        (size * Math.log(scaling.originalContextLength / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
      const [fast, slow] = [pairAt(scaling.betaFast), pairAt(scaling.betaSlow)];
      const first = Math.max(0, scaling.truncate ? Math.floor(fast) : fast);
      const last = Math.min(size - 1, scaling.truncate ? Math.ceil(slow) : slow);
      return Float32Array.from(plain, (frequency, j) => {
        const stretched = Math.min(1, Math.max(0, (j - first) / Math.max(last - first, 0.001)));
        return (frequency / scaling.factor) * stretched + frequency * (1 - stretched);
      });
    }
  }
}

/** What cosine and sine are multiplied with. */
export function rotaryMagnitude({ scaling }: Rotary): number {
  return scaling.type === 'yarn' ? scaling.attentionFactor : 1;
}

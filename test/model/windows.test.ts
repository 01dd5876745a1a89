import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { cutWindows, windowSpans } from '../../lib/model/windows.ts';

describe('spans of windows', () => {
  test('have all windows in order and their rows one after the other, at most 4096 tokens where more than one window is in them', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 20_000 }),
        fc.integer({ min: 2, max: 6000 }),
        (tokens, window) => {
          const windows = cutWindows(new Int32Array(tokens), window);
          const spans = windowSpans(windows);
          expect(spans.flatMap((span) => span.windows)).toEqual(windows);
          let row = 0;
          for (const { windows: own, lengths, begin, end } of spans) {
            expect(begin).toBe(row);
            expect(lengths).toEqual(own.map(({ length }) => length));
            expect(end - begin).toBe(own.flat().length);
            if (own.length > 1) expect(end - begin).toBeLessThanOrEqual(4096);
            row = end;
          }
          expect(row).toBe(windows.flat().length);
        },
      ),
      { numRuns: 50 },
    );
  });
});

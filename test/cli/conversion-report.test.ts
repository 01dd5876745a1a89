import { expect, it } from 'vitest';
import { describe } from '../../lib/cli/conversion-report.ts';
import type { ConversionReport } from '../../lib/conversion/report.ts';

const change = { before: 2, after: 1 };
const report: ConversionReport = {
  input: 'in',
  output: 'out',
  method: 'stacked-svd',
  format: 'latent',
  groupSize: 1,
  latentSizes: { gate: 8 },
  expertParameters: change,
  parameters: change,
  bytes: change,
  seconds: 1,
  peakBytes: 1,
  resumedFiles: 1,
  layers: [
    {
      layer: 0,
      operator: 'gate',
      group: 0,
      latentSize: 8,
      relativeError: 0.1,
      optimalRelativeError: 0.1,
      exact: false,
      jointDimension: 9,
      tolerance: 1e-6,
    },
  ],
};

it('calls one layer, one expert and one file what they are', () => {
  const lines = describe(report, change, 80);
  expect(lines).toContain('1 MoE layer, groups of 1 expert, latent size 8');
  expect(lines).toContain('Went on from a stopped run, which had finished 1 file.');
});

it('calls worse what grew by more than half a percent', () => {
  const grown = (after: number) => {
    const parameters = { before: 1000, after };
    return describe({ ...report, parameters }, change, 80).find((line) => line.startsWith('Parameters'));
  };
  expect(grown(1004)).not.toContain('worse');
  expect(grown(1006)).toContain('worse');
});

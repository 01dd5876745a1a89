import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import type { ConversionReport } from '../../lib/conversion/report.ts';

const script = fileURLToPath(new URL('../support/convert-synthetic.mjs', import.meta.url));

test("converting two layers of Qwen1.5-MoE shape stays below one expert + 24·n² bytes + one group's factors + 300 MB", async () => {
  const folder = await mkdtemp(join(tmpdir(), 'molae-memory-'));
  try {
    const [n, m, k, r] = [2048, 1408, 15, 704];
    const { stdout } = await promisify(execFile)(process.execPath, [
      script,
      folder,
      '2',
      String(k),
      String(r),
    ]);
    const report = JSON.parse(stdout) as ConversionReport;
    const expert = 2 * m * n;
    const factors = 2 * (k * m * r + r * n);
    console.log(`peak ${(report.peakBytes / 1e6).toFixed(0)} MB, ${report.seconds.toFixed(0)} s`);
    expect(report.peakBytes).toBeLessThan(expert + 24 * n ** 2 + factors + 300e6);
    // It did convert: every group of every layer, to just what the spectrum of random experts allows.
    expect(report.layers).toHaveLength(2 * 4 * 3);
    for (const row of report.layers) {
      expect(row.exact).toBe(false);
      expect(row.relativeError / row.optimalRelativeError).toBeLessThan(1.001);
      expect(row.relativeError).toBeGreaterThan(0.3);
    }
    await using converted = await openCheckpoint(join(folder, 'out'));
    expect(converted.expertParameters).toBe(2 * 3 * (60 * m * r + 4 * r * n));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}, 900_000);

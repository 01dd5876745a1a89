import type { Device } from '../device.ts';
import { MolaeError, throwIfAborted } from '../errors.ts';
import { packageVersion } from '../package.ts';
import { measureCalls } from './call-speed.ts';
import type { Ceilings } from './ceilings.ts';
import { CELLS, type LayerCell, scaleDown } from './cells.ts';
import { type FactorizationSize, measureFactorization } from './factorization-speed.ts';
import { COLD_BYTES, LayerRing, layersForTurns, measureLayers } from './layer-speed.ts';
import type { LayerDType } from './layers.ts';
import { describeMachine, type Machine } from './machine.ts';
import { type Measured, makeRow, type Row } from './row.ts';
import { type CeilingsSpread, ceilingsSpread, medianCeilings, Yardstick } from './yardstick.ts';

/** What is measured, and for how long. */
export interface MachineBenchPlan {
  readonly cell: LayerCell;
  readonly dtypes: readonly LayerDType[];
  readonly tokens: readonly number[];
  readonly factorization: FactorizationSize;
  /** Calls timed for their overhead. */
  readonly calls: number;
  /** Time for each figure; at least `minSamples` samples are taken. */
  readonly seconds: number;
  readonly minSamples: number;
  /** What layers touch before they come round again. */
  readonly coldBytes: number;
}

/** Less than a minute on two cores; a gigabyte of weights. */
export const SHORT_PLAN: MachineBenchPlan = {
  cell: scaleDown(CELLS[0] as LayerCell, 8),
  dtypes: ['f32', 'bf16'],
  tokens: [1, 16, 512],
  factorization: { n: 512, m: 352, k: 8, r: 256 },
  calls: 5000,
  seconds: 0.5,
  minSamples: 5,
  coldBytes: COLD_BYTES,
};

interface MachineBenchOptions {
  readonly plan?: MachineBenchPlan;
  readonly signal?: AbortSignal | undefined;
  /** @param note what is measured now */
  readonly onProgress?: ((done: number, total: number, note: string) => void) | undefined;
}

export interface MachineBench {
  readonly version: string;
  readonly machine: Machine;
  readonly threads: number;
  /** The median over all timings; every row is held against what was measured in turns with it. */
  readonly ceilings: Ceilings;
  readonly ceilingsSpread: CeilingsSpread;
  /** `peers` is empty: `npm run bench` of the repository has them. */
  readonly results: readonly (Row & { readonly peers: Readonly<Record<string, never>> })[];
  readonly seconds: number;
}

/** Holds molae on this machine against what the machine can do. The device must be a CPU's: only its limits are known. */
export async function benchMachine(
  device: Device,
  { plan = SHORT_PLAN, signal, onProgress }: MachineBenchOptions = {},
): Promise<MachineBench> {
  if (device.kind !== 'cpu') {
    throw new MolaeError('INVALID_ARGUMENT', `Expected a CPU for device but received ${device.kind}`);
  }
  const began = performance.now();
  const { threads } = device.info;
  const yardstick = new Yardstick(threads);
  const rows: Row[] = [];
  let done = 0;
  const total = plan.dtypes.length * plan.tokens.length + 2;
  const step = async (note: string, measure: () => Promise<Measured[]>) => {
    onProgress?.(done++, total, note);
    throwIfAborted(signal);
    const measured = await measure();
    rows.push(...measured.map((one) => makeRow(one, threads)));
  };

  const effort = { seconds: plan.seconds, minSamples: plan.minSamples, signal };
  for (const dtype of plan.dtypes) {
    onProgress?.(done, total, `making ${dtype} layers`);
    const count = layersForTurns(plan.cell, dtype, plan.coldBytes);
    using ring = await LayerRing.create(device, plan.cell, dtype, count, signal);
    for (const tokens of plan.tokens) {
      await step(`layers, ${dtype}, T ${tokens}`, () => measureLayers(ring, tokens, effort, yardstick));
    }
  }
  await step('factorization', () => measureFactorization(device, plan.factorization, effort, yardstick));
  await step('calls', () => measureCalls(device, plan.calls, yardstick));

  return {
    version: packageVersion(),
    machine: describeMachine(device.info),
    threads,
    ceilings: medianCeilings(yardstick.measured),
    ceilingsSpread: ceilingsSpread(yardstick.measured),
    results: rows.map((row) => ({ ...row, peers: {} })),
    seconds: (performance.now() - began) / 1000,
  };
}

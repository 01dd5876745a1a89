import { type Device, openDevice } from '../device.ts';
import { gemm } from '../linalg.ts';
import type { ConversionPlan } from '../plan/plan-conversion.ts';
import type { PlannedModel } from './planned-model.ts';

/** How long a conversion would take, roughly. */
export interface TimeEstimate {
  readonly seconds: number;
  /** The device that was asked. */
  readonly device: string;
  /** Floating-point operations of the factorization. */
  readonly flops: number;
  /** What the device reached in a short product of matrices, f32. */
  readonly gemmGflops: number;
}

const SIZE = 512;
const MEASURE_MS = 100;

/**
 * Eigenvectors of a symmetric f64 matrix run at about this share of the rate of f32 products: f64, half of it
 * bound by memory, and little of it parallel.
 */
const EIGEN_EFFICIENCY = 0.08;

/** The two passes over the experts convert, check and copy beside the products. */
const PRODUCT_EFFICIENCY = 0.5;

/** Reading every expert twice and writing the result, from a disk or its cache. */
const DISK_BYTES_PER_SECOND = 1e9;

/** Times a product for a tenth of a second, and scales it to the work that the plan means. */
export async function estimateTime(
  model: PlannedModel,
  plan: ConversionPlan,
  deviceName: string,
): Promise<TimeEstimate> {
  using device = await openDevice(deviceName);
  const rate = await gemmRate(device);
  const { products, eigen } = factorizationFlops(model, plan);
  const disk = (2 * model.byteLength + model.byteLength) / DISK_BYTES_PER_SECOND;
  return {
    seconds: products / (PRODUCT_EFFICIENCY * rate) + eigen / (EIGEN_EFFICIENCY * rate) + disk,
    device: device.kind === 'cpu' ? 'cpu' : `${device.kind}:${device.info.index}`,
    flops: products + eigen,
    gemmGflops: rate / 1e9,
  };
}

/**
 * Per expert and operator the Gram matrix (n²·m, a symmetric half), the projection and the product that measures the
 * residual (2·m·n·r each); per group and operator the eigenvectors (4/3·n³ to tridiagonal form, 4·n²·r there and back).
 */
function factorizationFlops(
  { spec }: PlannedModel,
  { operators, sharedGateUp, numGroups, latentSize: r, moeLayers }: ConversionPlan,
): { products: number; eigen: number } {
  const { hiddenSize: n, intermediateSize: m, numExperts: N } = spec;
  const bases = operators.length - (sharedGateUp ? 1 : 0);
  return {
    products: moeLayers.length * operators.length * N * (n * n * m + 4 * m * n * r),
    eigen: moeLayers.length * bases * numGroups * ((4 / 3) * n ** 3 + 4 * n * n * r),
  };
}

/** FLOP/s of an f32 product, the best of what fits into the time. */
async function gemmRate(device: Device): Promise<number> {
  const data = Float32Array.from({ length: SIZE * SIZE }, (_, i) => ((i * 7919) % 1009) / 1009 - 0.5);
  using a = device.tensor('f32', data, [SIZE, SIZE]);
  using out = device.empty('f32', [SIZE, SIZE]);
  let best = Number.POSITIVE_INFINITY;
  const begin = performance.now();
  // The first one warms up, and counts only if it was the only one.
  for (let run = 0; run < 2 || performance.now() - begin < MEASURE_MS; run++) {
    const start = performance.now();
    await gemm(a, a, { out });
    best = Math.min(best, performance.now() - start);
  }
  return (2 * SIZE ** 3) / (best / 1000);
}

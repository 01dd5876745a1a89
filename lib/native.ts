import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { DeviceInfo, MemoryUsage } from './device.ts';
import { MolaeError, type MolaeErrorCode, throwIfAborted } from './errors.ts';
import { PACKAGE_ROOT } from './package.ts';

/**
 * The one typed description of what the native addon exports. Nothing outside lib/ sees these types.
 *
 * Results go to tensors that the caller made with `empty`; promises resolve when the device's queue has done
 * the work, in the order of the calls.
 */
export interface NativeAddon {
  readonly version: string;
  readonly Cancellation: new () => NativeCancellation;
  openDevice(kind: string, index: number, threads: number): NativeDevice;
  /** What a backend in a library of its own ('cuda') finds: keys are driver, device, library and tried. */
  probeBackend(kind: string): NativeProbe;
  /** In place: the second half of `bytes` holds E4M3 codes of whole rows, all of it becomes their bf16 values. */
  expandE4m3(
    bytes: Uint8Array,
    firstRow: number,
    rows: number,
    cols: number,
    scales: Float32Array,
    blockRows: number,
    blockCols: number,
  ): void;
  measureCeilings(threads: number): Promise<NativeCeilings>;
}

export interface NativeProbe {
  readonly available: boolean;
  /** Empty where it is available. */
  readonly reason: string;
  readonly details: readonly (readonly [key: string, value: string])[];
}

export interface NativeCeilings {
  readonly fmaGflops: number;
  readonly sgemmGflops: number;
  readonly readGBps: number;
}

export interface NativeCancellation {
  cancel(): void;
}

export type NativeGemm = readonly [
  a: NativeTensor,
  b: NativeTensor,
  out: NativeTensor,
  transposeA: boolean,
  transposeB: boolean,
  alpha: number,
  beta: number,
];

export interface NativeOperator {
  readonly perExpert: readonly NativeTensor[];
  readonly shared: readonly NativeTensor[];
}

export interface NativeLayerDescription {
  readonly activation: string;
  readonly groups: readonly (readonly number[])[];
  readonly gate: NativeOperator;
  readonly up: NativeOperator;
  readonly down: NativeOperator;
  readonly sharedExpert?:
    | {
        readonly gate: NativeTensor;
        readonly up: NativeTensor;
        readonly down: NativeTensor;
        readonly gateLogit?: NativeTensor | undefined;
      }
    | undefined;
}

export interface NativeBasisOptions {
  readonly side: 'input' | 'output';
  readonly sharedSize: number;
  readonly solver: string;
  readonly rankReduction: number;
  readonly controlSeed?: number | undefined;
}

export interface NativeBasisReport {
  readonly squaredNorm: number;
  readonly optimalRelativeError: number;
  readonly jointDimension: number;
  readonly tolerance: number;
  readonly controlRelativeError?: number;
}

export interface NativeCalibrationOptions {
  /** Inputs of the layer [T, n], f32. */
  readonly x: NativeTensor;
  readonly ids: NativeTensor;
  readonly weights: NativeTensor;
  /** Of the group, by their numbers in the routing. */
  readonly experts: readonly number[];
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly activation: string;
  readonly sharedGateUp: boolean;
  readonly shrinkage: number;
  readonly refit: boolean;
  readonly weighRows: boolean;
  readonly refitDown: boolean;
}

/** Squared sums over a sample of an expert's tokens; gate, up, down. */
export interface NativeExpertLoss {
  readonly lost: Float64Array;
  readonly original: Float64Array;
  readonly lostOutput: number;
}

/** [queryBegin, queryEnd, keyBegin, keyEnd]: rows of q and of keys and values; queries are the last of the keys. */
export type NativeSequence = readonly [number, number, number, number];

export interface NativeAttentionSpec {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly valueSize: number;
  readonly scale: number;
  /** 0: all keys before the query. */
  readonly window: number;
}

export interface NativeRotarySpec {
  readonly heads: number;
  readonly headSize: number;
  readonly offset: number;
  /** Rotates neighbouring elements together instead of the halves of a head. */
  readonly neighbours: boolean;
  readonly magnitude: number;
}

/** `numGroups` 0: no group limit. */
export interface NativeRouterSpec {
  readonly scoring: string;
  readonly topK: number;
  readonly renormalize: boolean;
  readonly scalingFactor: number;
  readonly numGroups: number;
  readonly chosenGroups: number;
  readonly groupScore: string;
  readonly jitter: number;
  readonly correctionBias?: NativeTensor | undefined;
}

/** `width` columns of every head of `from` (or of its only one) to the heads of `to`. */
export interface NativeHeadColumns {
  readonly heads: number;
  readonly fromHeads: number;
  readonly fromOffset: number;
  readonly toOffset: number;
  readonly width: number;
}

export interface NativeDevice {
  info(): DeviceInfo;
  memoryUsage(): MemoryUsage;
  empty(dtype: string, shape: readonly number[]): NativeTensor;
  fromData(dtype: string, shape: readonly number[], data: NodeJS.TypedArray): NativeTensor;
  copy(from: NativeTensor, to: NativeTensor): Promise<void>;
  transpose(from: NativeTensor, to: NativeTensor): Promise<void>;
  gemm(...problem: NativeGemm): Promise<void>;
  /** Of stacks. */
  batchedGemm(...problem: NativeGemm): Promise<void>;
  /**
   * Flat, as an object for each of thousands of products takes longer to read than a small product to compute: a, b and
   * out of each, and its transposeA, transposeB, alpha and beta.
   */
  groupedGemm(tensors: readonly NativeTensor[], settings: Float64Array): Promise<void>;
  svd(a: NativeTensor, u: NativeTensor, s: NativeTensor, vt: NativeTensor): Promise<void>;
  eigh(a: NativeTensor, values: NativeTensor, vectors: NativeTensor): Promise<void>;
  route(
    logits: NativeTensor,
    spec: NativeRouterSpec,
    ids: NativeTensor,
    weights: NativeTensor,
  ): Promise<void>;
  timestamp(): Promise<number>;
  synchronize(): Promise<void>;
  gatherRows(table: NativeTensor, ids: NativeTensor, out: NativeTensor): Promise<void>;
  linear(
    x: NativeTensor,
    weight: NativeTensor,
    bias: NativeTensor | undefined,
    out: NativeTensor,
  ): Promise<void>;
  rmsNorm(x: NativeTensor, weight: NativeTensor, eps: number, out: NativeTensor): Promise<void>;
  rotary(
    x: NativeTensor,
    positions: NativeTensor,
    frequencies: NativeTensor,
    spec: NativeRotarySpec,
  ): Promise<void>;
  attention(
    q: NativeTensor,
    keys: NativeTensor,
    values: NativeTensor,
    sequences: readonly NativeSequence[],
    spec: NativeAttentionSpec,
    out: NativeTensor,
  ): Promise<void>;
  copyHeadColumns(from: NativeTensor, to: NativeTensor, columns: NativeHeadColumns): Promise<void>;
  add(from: NativeTensor, to: NativeTensor): Promise<void>;
  crossEntropy(logits: NativeTensor, targets: NativeTensor, losses: NativeTensor): Promise<void>;
  compareDistributions(
    p: NativeTensor,
    q: NativeTensor,
    divergences: NativeTensor,
    agreements: NativeTensor,
  ): Promise<void>;
  prepareLayer(description: NativeLayerDescription): NativeLayer;
  sharedBasis(options: NativeBasisOptions): NativeBasis;
  calibratedGroup(options: NativeCalibrationOptions): NativeCalibratedGroup;
  dispose(): void;
}

export interface NativeTensor {
  slice(index: number): NativeTensor;
  rowRange(begin: number, end: number): NativeTensor;
  reshape(shape: readonly number[]): NativeTensor;
  read(target: NodeJS.TypedArray): Promise<void>;
  readSync(target: NodeJS.TypedArray): void;
  write(source: NodeJS.TypedArray): Promise<void>;
  dispose(): void;
}

export interface NativeLayer {
  forward(
    x: NativeTensor,
    ids: NativeTensor,
    weights: NativeTensor,
    out: NativeTensor,
    cancellation?: NativeCancellation,
  ): Promise<void>;
  forwardSync(x: NativeTensor, ids: NativeTensor, weights: NativeTensor, out: NativeTensor): void;
  pack(inputs: 'f32' | 'bf16', cancellation?: NativeCancellation): Promise<void>;
  dispose(): void;
}

export interface NativeBasis {
  add(w: NativeTensor): Promise<void>;
  solve(b: NativeTensor): Promise<NativeBasisReport>;
  project(w: NativeTensor, a: NativeTensor): Promise<number>;
  dispose(): void;
}

export interface NativeCalibratedGroup {
  /** Resolves with the number of tokens that reach the expert. */
  observe(index: number, gate: NativeTensor, up: NativeTensor, down: NativeTensor): Promise<number>;
  spectrum(operator: string): Promise<Float64Array>;
  solve(operator: string, b: NativeTensor): Promise<Float64Array>;
  beginAlternation(operator: string): Promise<void>;
  addToAlternation(operator: string, index: number, w: NativeTensor): Promise<void>;
  endAlternation(operator: string, b: NativeTensor): Promise<void>;
  project(
    index: number,
    gate: NativeTensor,
    up: NativeTensor,
    down: NativeTensor,
    aGate: NativeTensor | undefined,
    aUp: NativeTensor | undefined,
    aDown: NativeTensor | undefined,
  ): Promise<NativeExpertLoss>;
  dispose(): void;
}

let addon: NativeAddon | undefined;

/**
 * Loads the addon on first use: from a build in `build/`, or from `prebuilds/`; of the package, or of the folder that the
 * environment variable `MOLAE_PREBUILD` names.
 */
export function native(): NativeAddon {
  addon ??= load();
  return addon;
}

function load(): NativeAddon {
  const root = PACKAGE_ROOT;
  const require = createRequire(import.meta.url);
  try {
    const nodeGypBuild = require('node-gyp-build') as (root: string) => NativeAddon;
    return nodeGypBuild(root);
  } catch (cause) {
    throw new MolaeError('ADDON_UNAVAILABLE', describeLoadFailure(root, cause), { cause });
  }
}

function describeLoadFailure(root: string, cause: unknown): string {
  const reason = cause instanceof Error ? (cause.message.split('\n')[0] ?? '') : String(cause);
  const elsewhere = process.env.MOLAE_PREBUILD;
  const folder = elsewhere || root;
  return [
    `The native addon of molae could not be loaded on ${process.platform}-${process.arch} (Node ${process.version}).`,
    `Looked in ${join(folder, 'build')} and ${join(folder, 'prebuilds')}${elsewhere ? ', as MOLAE_PREBUILD says' : ''}: ${reason}`,
    `To build it from source: install a C++20 compiler, CMake 3.20 and OpenBLAS, then run "npm run build:native" in ${root}.`,
  ].join('\n');
}

/**
 * Runs a synchronous native call; its error becomes a MolaeError.
 */
export function callNative<Result>(call: () => Result): Result {
  try {
    return call();
  } catch (error) {
    throw toMolaeError(error);
  }
}

/**
 * Awaits a native call; its error becomes a MolaeError that is made here, so that its (async) stack leads to
 * the caller and not to the queue.
 */
export async function awaitNative<Result>(call: () => Promise<Result>): Promise<Result> {
  try {
    return await call();
  } catch (error) {
    throw toMolaeError(error);
  }
}

/** Like awaitNative, for a call that an AbortSignal can stop between its steps. */
export async function awaitAbortable<Result>(
  signal: AbortSignal | undefined,
  call: (cancellation: NativeCancellation | undefined) => Promise<Result>,
): Promise<Result> {
  if (signal === undefined) return awaitNative(() => call(undefined));
  throwIfAborted(signal);
  const cancellation = new (native().Cancellation)();
  const onAbort = () => cancellation.cancel();
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await awaitNative(() => call(cancellation));
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

function toMolaeError(error: unknown): unknown {
  if (error instanceof MolaeError || !(error instanceof Error)) return error;
  const code = (error as Error & { code?: unknown }).code;
  if (typeof code !== 'string') return error;
  return new MolaeError(code as MolaeErrorCode, error.message);
}

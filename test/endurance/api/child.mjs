// The process that is attacked: makes the calls, and stops at the first finding. Started by main.mjs.
//
//   node child.mjs <package folder> <calls> <seed> <journal>
//
// Before each call its number and description go to the journal, for the parent to read after a crash.

import { ftruncateSync, openSync, writeSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import fc from 'fast-check';
import { publicCalls } from './calls.mjs';
import { Hostility, hostile, kin, Maker, places } from './recipes.mjs';

const [folder, calls, seed, journalPath] = process.argv.slice(2);
const molae = await import(pathToFileURL(resolve(folder, 'index.js')).href);
const { MolaeError, openDevice, Tensor } = molae;
const world = {
  here: await openDevice('cpu', { threads: 2 }),
  there: await openDevice('cpu', { threads: 1 }),
  gone: await openDevice('cpu', { threads: 2 }),
};
world.gone.dispose();
const functions = publicCalls(molae, world.here.constructor);
const journal = openSync(journalPath, 'w');

/** A call on arguments this small that takes longer is a finding. */
const SLOW_MS = 5000;
const CODES = new Set([
  'INVALID_ARGUMENT',
  'SHAPE_MISMATCH',
  'DTYPE_MISMATCH',
  'DEVICE_MISMATCH',
  'DISPOSED',
  'NON_FINITE',
  'OUT_OF_MEMORY',
  'NO_CONVERGENCE',
  'DEVICE_UNAVAILABLE',
  'ABORTED',
]);

const size = fc.integer({ min: 1, max: 5 });
const anyCall = fc.record({
  name: fc.constantFrom(...Object.keys(functions)),
  sizes: fc.record({
    T: size,
    N: size,
    m: size,
    n: size,
    r: size,
    dtype: fc.constantFrom('f32', 'f64', 'f16', 'bf16'),
  }),
  changes: fc.array(fc.record({ at: fc.nat({ max: 200 }), to: fc.option(hostile, { freq: 10 }) }), {
    maxLength: 3,
  }),
  disturbance: fc.constantFrom('none', 'none', 'none', 'dispose before', 'dispose', 'detach', 'abort'),
});

const counts = { calls: 0, succeeded: 0, refused: {} };

async function attack({ name, sizes, changes, disturbance }) {
  const line = `${JSON.stringify({ call: counts.calls, name, sizes, changes, disturbance })}\n`;
  ftruncateSync(journal, writeSync(journal, line, 0));
  counts.calls++;
  const before = held();
  const started = performance.now();
  const maker = new Maker(molae, world);
  let result;
  try {
    const { self, args, run } = functions[name];
    const recipe = change({ is: 'call', args: structuredClone(args(sizes)) }, changes, self);
    const values = recipe.args.map((arg) => maker.make(arg));
    if (disturbance === 'dispose before') maker.dispose();
    const running = run(values);
    if (disturbance === 'dispose') maker.dispose();
    if (disturbance === 'detach') maker.detach();
    if (disturbance === 'abort') maker.abort();
    result = await running;
    await checkResult(result);
    counts.succeeded++;
  } catch (error) {
    checkError(error);
  } finally {
    disposeAll(result);
    maker.dispose();
  }
  const took = performance.now() - started;
  if (took > SLOW_MS) throw new Error(`took ${took.toFixed(0)} ms`);
  if (held() !== before) throw new Error(`${held() - before} bytes are still held afterwards`);
  if (counts.calls % 500 === 0) await checkDevice();
}

function held() {
  return world.here.memoryUsage().tensors + world.there.memoryUsage().tensors;
}

/** The recipe with hostile arguments in some of its places; `to` null: nothing in it. */
function change(recipe, changes, self) {
  for (const { at, to } of changes) {
    const open = places(recipe).filter(
      ({ children, key }) => !(self && children === recipe.args && key === '0'),
    );
    if (open.length === 0) break;
    const { children, key } = open[at % open.length];
    if (to?.is === 'kin' && children[key].is === 'tensor') children[key] = kin(children[key], to);
    else if (to !== null) children[key] = to;
    else if (Array.isArray(children)) children.splice(Number(key), 1);
    else delete children[key];
  }
  return recipe;
}

function checkError(error) {
  if (error instanceof Hostility || /revoked/.test(error?.message)) return; // the argument's own doing
  if (!(error instanceof MolaeError)) throw new Error(`no MolaeError: ${describe(error)}`, { cause: error });
  if (!CODES.has(error.code)) throw new Error(`code ${error.code}: ${error.message}`, { cause: error });
  if (error.message.length > 500) throw new Error(`a message of ${error.message.length} characters`);
  counts.refused[error.code] = (counts.refused[error.code] ?? 0) + 1;
}

function describe(error) {
  return error instanceof Error ? (error.stack ?? error.message) : typeof error;
}

/** What a call gives back can be used: a tensor has the elements that its shape says. */
async function checkResult(result) {
  for (const item of disposables(result)) {
    if (!(item instanceof Tensor) || item.disposed || item.length > 1e6) continue;
    const array = await item.read();
    if (array.length !== item.length) throw new Error(`${array.length} elements in [${item.shape}]`);
  }
}

function disposables(result) {
  if (typeof result !== 'object' || result === null) return [];
  if (typeof result.dispose === 'function') return [result];
  return Object.values(result).filter((item) => typeof item?.dispose === 'function');
}

function disposeAll(result) {
  for (const item of disposables(result)) if (item !== world.here) item.dispose();
}

async function checkDevice() {
  const a = world.here.tensor('f32', Float32Array.of(1, 2, 3, 4), [2, 2]);
  const product = await molae.gemm(a, a);
  const values = await product.read();
  a.dispose();
  product.dispose();
  if (values.join() !== '7,10,15,22') throw new Error('the device computes wrong');
}

const outcome = await fc.check(fc.asyncProperty(anyCall, attack), {
  numRuns: Number(calls),
  seed: Number(seed),
});
if (outcome.failed) {
  const [example] = outcome.counterexample ?? [];
  console.log(
    JSON.stringify({
      finding: { example, problem: String(outcome.errorInstance?.message ?? outcome.error) },
    }),
  );
  process.exitCode = 1;
} else {
  console.log(JSON.stringify(counts));
}

// The public functions that take tensors, each with arguments that fit it. fast-check then puts hostile ones in their place.

import { list, literal, record, tensor, typed } from './recipes.mjs';

const TYPES = {
  f32: 'Float32Array',
  f64: 'Float64Array',
  i32: 'Int32Array',
  f16: 'Uint16Array',
  bf16: 'Uint16Array',
};

const scalar = (value) => literal(value);
const spec = (fields) =>
  record(Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, scalar(value)])));
const sizes = (shape) => list(...shape.map(scalar));

const dense = ({ N, m, n, dtype }) => {
  const each = (shape) => list(...Array.from({ length: N }, () => tensor(dtype, shape)));
  return { gate: each([m, n]), up: each([m, n]), down: each([n, m]) };
};

const latentInit = ({ N, m, n, r, dtype }) =>
  record({
    groups: list(list(...Array.from({ length: N }, (_, i) => scalar(i)))),
    gate: record({ a: list(tensor(dtype, [N, m, r])), b: list(tensor(dtype, [r, n])) }),
    up: record({ a: list(tensor(dtype, [N, m, r])), b: list(tensor(dtype, [r, n])) }),
    down: record({ a: list(tensor(dtype, [N, r, m])), b: list(tensor(dtype, [n, r])) }),
    activation: scalar('silu'),
    sharedExpert: record({
      gate: tensor(dtype, [m, n]),
      up: tensor(dtype, [m, n]),
      down: tensor(dtype, [n, m]),
      gateLogit: tensor(dtype, [1, n]),
    }),
  });

const routing = ({ T, N }, K = 1) =>
  record({
    ids: tensor('i32', [T, K], { values: Array.from({ length: T * K }, (_, i) => i % N) }),
    weights: tensor('f32', [T, K]),
  });

const block = (s) =>
  record({
    router: tensor('f32', [s.N, s.n]),
    spec: spec({ scoring: 'softmax', topK: 1, renormalize: true }),
    experts: { is: 'dense experts', ...dense({ ...s, dtype: 'f32' }) },
  });

const signal = { is: 'signal', state: 'live' };

/** A method: its first argument is `this`, which stays what it is. */
const method = (prototype, name, args) => ({
  self: true,
  args,
  run: ([self, ...rest]) => prototype[name].apply(self, rest),
});

/** A function, or a constructor. */
const call = (run, args) => ({ self: false, args, run: (values) => run(...values) });

/** By name: `args` that fit, for sizes T, N, m, n, r (1 to 5) and a dtype, and `run`, which calls. */
export function publicCalls(molae, Device) {
  const { Tensor, Experts, MoeBlock, DenseExperts, LatentExperts } = molae;
  const device = { is: 'device' };
  const matrix = ({ m, n, dtype }) => tensor(dtype, [m, n]);
  const array = ({ m, n, dtype }) => typed(TYPES[dtype], m * n);
  return {
    openDevice: call(molae.openDevice, () => [scalar('cpu'), spec({ threads: 2 })]),
    'device.tensor': method(Device.prototype, 'tensor', (s) => [
      device,
      scalar(s.dtype),
      array(s),
      sizes([s.m, s.n]),
    ]),
    'device.empty': method(Device.prototype, 'empty', (s) => [device, scalar(s.dtype), sizes([s.m, s.n])]),
    'device.synchronize': method(Device.prototype, 'synchronize', () => [device]),
    'device.timestamp': method(Device.prototype, 'timestamp', () => [device]),
    'device.memoryUsage': method(Device.prototype, 'memoryUsage', () => [device]),
    'tensor.read': method(Tensor.prototype, 'read', (s) => [matrix(s), array(s)]),
    'tensor.readSync': method(Tensor.prototype, 'readSync', (s) => [matrix(s), array(s)]),
    'tensor.write': method(Tensor.prototype, 'write', (s) => [matrix(s), array(s)]),
    'tensor.to': method(Tensor.prototype, 'to', (s) => [matrix(s), scalar('f64')]),
    'tensor.toFloat32': method(Tensor.prototype, 'toFloat32', (s) => [matrix(s)]),
    'tensor.slice': method(Tensor.prototype, 'slice', (s) => [matrix(s), scalar(s.m - 1)]),
    'tensor.rows': method(Tensor.prototype, 'rows', (s) => [matrix(s), scalar(0), scalar(s.m)]),
    'tensor.reshape': method(Tensor.prototype, 'reshape', (s) => [matrix(s), sizes([s.n, s.m])]),
    'tensor.dispose': method(Tensor.prototype, 'dispose', (s) => [matrix(s)]),
    gemm: call(molae.gemm, ({ m, n, r, dtype }) => [
      tensor(dtype, [m, r]),
      tensor(dtype, [r, n]),
      record({
        transposeA: scalar(false),
        transposeB: scalar(false),
        alpha: scalar(2),
        beta: scalar(0.5),
        out: tensor(dtype, [m, n]),
      }),
    ]),
    batchedGemm: call(molae.batchedGemm, ({ T, m, n, r, dtype }) => [
      tensor(dtype, [T, m, r]),
      tensor(dtype, [T, r, n]),
      spec({ alpha: 1 }),
    ]),
    groupedGemm: call(molae.groupedGemm, ({ T, m, n, r, dtype }) => [
      list(
        record({ a: tensor(dtype, [m, r]), b: tensor(dtype, [r, n]) }),
        record({ a: tensor(dtype, [r, T]), b: tensor(dtype, [n, T]), transposeB: scalar(true) }),
      ),
    ]),
    svd: call(molae.svd, ({ m, n }) => [tensor('f32', [m, n])]),
    eigh: call(molae.eigh, ({ n }) => [tensor('f64', [n, n]), spec({ top: n })]),
    transpose: call(molae.transpose, (s) => [matrix(s)]),
    route: call(molae.route, ({ T, N }) => [
      tensor('f32', [T, 2 * N]),
      record({
        scoring: scalar('sigmoid'),
        topK: scalar(1),
        renormalize: scalar(true),
        scalingFactor: scalar(2.5),
        jitter: scalar(0),
        groupLimit: spec({ numGroups: N, chosenGroups: 1, score: 'top2' }),
      }),
      record({ correctionBias: tensor('f32', [2 * N]) }),
    ]),
    'new DenseExperts': call(
      (init) => new DenseExperts(init),
      (s) => [record({ ...dense(s), activation: scalar('gelu') })],
    ),
    'new LatentExperts': call(
      (init) => new LatentExperts(init),
      (s) => [latentInit(s)],
    ),
    'dense.forward': method(Experts.prototype, 'forward', (s) => [
      { is: 'dense experts', ...dense(s) },
      tensor(s.dtype, [s.T, s.n]),
      routing(s),
      record({ out: tensor(s.dtype, [s.T, s.n]), signal }),
    ]),
    'latent.forward': method(Experts.prototype, 'forward', (s) => [
      { is: 'latent experts', init: latentInit(s) },
      tensor(s.dtype, [s.T, s.n]),
      routing(s),
      record({ signal }),
    ]),
    'latent.forwardSync': method(Experts.prototype, 'forwardSync', (s) => [
      { is: 'latent experts', init: latentInit(s) },
      tensor(s.dtype, [s.T, s.n]),
      routing(s),
      record({ out: tensor(s.dtype, [s.T, s.n]) }),
    ]),
    factorizeCalibrated: call(molae.factorizeCalibrated, (s) => [
      { is: 'dense experts', ...dense(s) },
      record({ x: tensor('f32', [s.T, s.n]), routing: routing(s) }),
      record({
        groupSize: scalar(s.N),
        latentSize: scalar(1),
        shrinkage: scalar(s.r),
        sharedGateUp: scalar(s.m % 2 === 0),
        refit: scalar(s.T % 2 === 0),
        refitDown: scalar(s.T % 3 === 0),
        dtype: scalar(s.dtype),
        onProgress: { is: 'odd', name: 'a function' },
        signal,
      }),
    ]),
    factorizeExperts: call(molae.factorizeExperts, (s) => [
      { is: 'dense experts', ...dense(s) },
      record({
        groupSize: scalar(s.N),
        latentSize: scalar(1),
        solver: scalar(s.T % 2 ? 'gram' : 'svd'),
        rankReduction: scalar(s.r % 3),
        sharedGateUp: scalar(s.m % 2 === 0),
        control: scalar(s.n % 2 === 0),
        dtype: scalar(s.dtype),
        operators: list(scalar('gate'), scalar('up'), scalar('down')),
        onProgress: { is: 'odd', name: 'a function' },
        signal,
      }),
    ]),
    'new MoeBlock': call(
      (init) => new MoeBlock(init),
      (s) => [block(s)],
    ),
    'block.forward': method(MoeBlock.prototype, 'forward', (s) => [
      { is: 'block', init: block(s) },
      tensor(s.dtype === 'f64' ? 'f32' : s.dtype, [s.T, s.n]),
      record({ signal }),
    ]),
    'block.route': method(MoeBlock.prototype, 'route', (s) => [
      { is: 'block', init: block(s) },
      tensor('bf16', [s.T, s.n]),
    ]),
  };
}

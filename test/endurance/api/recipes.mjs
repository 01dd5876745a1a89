// Arguments as plain descriptions, so that fast-check can shrink and print them, and the values made from them.

import fc from 'fast-check';

/** Values that no function expects. By name: fast-check prints the name. */
const ODD = {
  undefined: undefined,
  null: null,
  true: true,
  false: false,
  zero: 0,
  'minus zero': -0,
  one: 1,
  'minus one': -1,
  'one and a half': 1.5,
  NaN: Number.NaN,
  infinity: Number.POSITIVE_INFINITY,
  '2^31 - 1': 2 ** 31 - 1,
  '2^31': 2 ** 31,
  '2^32': 2 ** 32,
  '2^40': 2 ** 40,
  '2^53 - 1': 2 ** 53 - 1,
  '2^53': 2 ** 53,
  '1e308': 1e308,
  tiny: 5e-324,
  'a bigint': 3n,
  'empty string': '',
  "'3'": '3',
  "'f32'": 'f32',
  "'cpu'": 'cpu',
  "'__proto__'": '__proto__',
  "'constructor'": 'constructor',
  'lone surrogate': '\ud800',
  'long string': 'x'.repeat(100_000),
  'a symbol': Symbol('odd'),
  'a function': () => 1,
  'a class': class Odd {},
  'an empty array': [],
  'an empty object': {},
  'no prototype': Object.create(null),
  'nested arrays': [[[[[]]]]],
  'a date': new Date(Number.NaN),
  'a map': new Map([['a', 1]]),
  'a promise': Promise.resolve(1),
  // biome-ignore lint/suspicious/noThenProperty: a value that is awaited by mistake
  'a thenable': { then: (resolve) => resolve(1) },
  'an ArrayBuffer': new ArrayBuffer(16),
  'a SharedArrayBuffer': new SharedArrayBuffer(16),
  'a DataView': new DataView(new ArrayBuffer(16)),
  'a Uint8Array': new Uint8Array(12),
  'a BigInt64Array': new BigInt64Array(2),
  'a boxed number': Object(3),
  'a long sparse array': new Array(2 ** 32 - 1),
  'an array of 100,000 ones': new Array(100_000).fill(1),
};
ODD.cyclic = [];
ODD.cyclic.push(ODD.cyclic, { cyclic: ODD.cyclic });

/** What hostile objects throw: it may come back to the caller, unlike other errors that are no MolaeError. */
export class Hostility extends Error {}

function hostility() {
  throw new Hostility('thrown by an argument');
}

const TRAPS = [
  'get',
  'has',
  'ownKeys',
  'getPrototypeOf',
  'getOwnPropertyDescriptor',
  'apply',
  'construct',
  'set',
];

const small = fc.nat({ max: 6 });
const anyDType = fc.constantFrom('f32', 'f64', 'f16', 'bf16', 'i32');
const oddNumber = fc.oneof(
  small,
  fc.constantFrom(-1, 1.5, Number.NaN, 2 ** 31, 2 ** 32, 2 ** 40, 2 ** 53 - 1, 1e308),
);

export const tensor = (dtype, shape, more = {}) => ({ is: 'tensor', dtype, shape, ...more });
export const literal = (value) => ({ is: 'literal', value });
export const list = (...items) => ({ is: 'array', items });
export const record = (fields) => ({ is: 'object', fields });
export const typed = (type, length, buffer = 'own') => ({ is: 'typed', type, length, buffer });

/** A tensor like the one that fits, but for something. */
const otherTensor = fc.record(
  {
    is: fc.constant('kin'),
    dtype: anyDType,
    where: fc.constant('there'),
    state: fc.constantFrom('disposed', 'view', 'uninitialized'),
    fill: fc.constantFrom('zero', 'NaN', 'infinity', 'huge'),
    axis: fc.nat({ max: 3 }),
    size: small,
    rank: fc.constantFrom(-1, 1),
  },
  { requiredKeys: ['is'] },
);

export function kin(tensor, { is: _, axis, size, rank, ...others }) {
  const shape = [...tensor.shape];
  if (axis !== undefined && size !== undefined && axis < shape.length) shape[axis] = size;
  if (rank === 1) shape.unshift(1);
  if (rank === -1) shape.pop();
  return { ...tensor, values: undefined, ...others, shape };
}

const anything = fc.letrec((tie) => ({
  any: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    fc.constantFrom(...Object.keys(ODD)).map((name) => ({ is: 'odd', name })),
    oddNumber.map(literal),
    fc.record({
      is: fc.constant('tensor'),
      dtype: anyDType,
      shape: fc.array(small, { maxLength: 4 }),
      where: fc.constantFrom('here', 'there'),
      state: fc.constantFrom('live', 'disposed', 'uninitialized', 'view'),
      fill: fc.constantFrom('normal', 'zero', 'NaN', 'infinity', 'huge'),
    }),
    fc.record({
      is: fc.constant('typed'),
      type: fc.constantFrom(
        'Float32Array',
        'Float64Array',
        'Uint16Array',
        'Int32Array',
        'Uint8Array',
        'BigInt64Array',
      ),
      length: fc.nat({ max: 40 }),
      buffer: fc.constantFrom(
        'own',
        'offset',
        'shared',
        'detached',
        'resizable',
        'shrunk',
        'lying',
        'subclass',
      ),
    }),
    fc.record({ is: fc.constant('signal'), state: fc.constantFrom('live', 'aborted', 'fake') }),
    fc.record({ is: fc.constant('experts'), state: fc.constantFrom('live', 'disposed') }),
    fc.record({ is: fc.constant('disposed device') }),
    fc.record({ is: fc.constant('revoked proxy') }),
    fc.record({ is: fc.constant('proxy'), of: tie('any'), trap: fc.option(fc.constantFrom(...TRAPS)) }),
    fc.record({ is: fc.constant('getters'), of: tie('any'), throws: fc.boolean() }),
    fc.array(tie('any'), { maxLength: 4 }).map((items) => list(...items)),
    fc
      .dictionary(
        fc.constantFrom('a', 'b', 'out', 'ids', 'weights', 'top', 'threads', 'gate', 'shape', 'signal'),
        tie('any'),
        {
          maxKeys: 3,
        },
      )
      .map(record),
  ),
})).any;

/** Any argument at all; where a tensor fits, often another tensor. */
export const hostile = fc.oneof(anything, otherTensor);

/** Makes values on the devices of a world, and remembers what has to go again. */
export class Maker {
  #molae;
  #world;
  #made = [];
  #buffers = [];
  #controllers = [];

  constructor(molae, world) {
    this.#molae = molae;
    this.#world = world;
  }

  /** Disposes everything made so far. */
  dispose() {
    for (const item of this.#made) item.dispose();
  }

  /** Detaches or shrinks the buffers of all typed arrays made so far. */
  detach() {
    for (const buffer of this.#buffers) {
      if (!(buffer instanceof ArrayBuffer) || buffer.byteLength === 0) continue;
      if (buffer.resizable) buffer.resize(0);
      else structuredClone(buffer, { transfer: [buffer] });
    }
  }

  abort() {
    for (const controller of this.#controllers) controller.abort();
  }

  make(recipe) {
    switch (recipe.is) {
      case 'kin': // not in the place of a tensor
        return undefined;
      case 'odd':
        return ODD[recipe.name];
      case 'literal':
        return recipe.value;
      case 'device':
        return this.#world.here;
      case 'tensor':
        return this.#tensor(recipe);
      case 'typed': {
        const array = this.#typed(recipe);
        this.#buffers.push(array.buffer);
        return array;
      }
      case 'array':
        return recipe.items.map((item) => this.make(item));
      case 'object':
        return Object.fromEntries(
          Object.entries(recipe.fields).map(([name, value]) => [name, this.make(value)]),
        );
      case 'dense experts':
        return this.#kept(
          new this.#molae.DenseExperts(
            this.make(record({ gate: recipe.gate, up: recipe.up, down: recipe.down })),
          ),
        );
      case 'latent experts':
        return this.#kept(new this.#molae.LatentExperts(this.make(recipe.init)));
      case 'experts': {
        const w = (shape) => list(tensor('f32', shape), tensor('f32', shape));
        const experts = this.make({ is: 'dense experts', gate: w([2, 3]), up: w([2, 3]), down: w([3, 2]) });
        if (recipe.state === 'disposed') experts.dispose();
        return experts;
      }
      case 'block':
        return new this.#molae.MoeBlock(this.make(recipe.init));
      case 'signal': {
        if (recipe.state === 'fake')
          return { aborted: false, addEventListener: hostility, removeEventListener: hostility };
        const controller = new AbortController();
        this.#controllers.push(controller);
        if (recipe.state === 'aborted') controller.abort();
        return controller.signal;
      }
      case 'disposed device':
        return this.#world.gone;
      case 'revoked proxy': {
        const { proxy, revoke } = Proxy.revocable({}, {});
        revoke();
        return proxy;
      }
      case 'proxy':
        return this.#proxy(recipe);
      case 'getters':
        return this.#getters(recipe);
      default:
        throw new Error(`no such recipe: ${recipe.is}`);
    }
  }

  #kept(value) {
    this.#made.push(value);
    return value;
  }

  #tensor({ dtype, shape, where = 'here', state = 'live', fill = 'normal', values }) {
    if (state === 'uninitialized') return Object.create(this.#molae.Tensor.prototype);
    const length = shape.reduce((product, size) => product * size, 1);
    const type = { f32: Float32Array, f64: Float64Array, i32: Int32Array }[dtype] ?? Uint16Array;
    const half = dtype === 'bf16' || dtype === 'f16';
    const number = {
      normal: (i) => (half ? 0x3c00 + ((i * 37) % 256) : dtype === 'i32' ? i % 2 : Math.sin(i * i + 1)),
      zero: () => 0,
      NaN: () => (half ? 0x7fc0 : Number.NaN),
      infinity: () => (half ? 0x7f80 : Number.POSITIVE_INFINITY),
      huge: () => (half ? 0x7bff : 3e38),
    }[fill];
    const data = values ? type.from(values) : type.from({ length }, (_, i) => number(i));
    const whole = this.#kept(this.#world[where].tensor(dtype, data, shape));
    if (state === 'disposed') whole.dispose();
    return state === 'view' ? this.#kept(whole.reshape(shape)) : whole;
  }

  #typed({ type, length, buffer }) {
    const Type = globalThis[type];
    const bytes = length * Type.BYTES_PER_ELEMENT;
    switch (buffer) {
      case 'offset':
        return new Type(new ArrayBuffer(bytes + 64), 16, length);
      case 'shared':
        return new Type(new SharedArrayBuffer(bytes));
      case 'detached': {
        const array = new Type(length);
        structuredClone(array.buffer, { transfer: [array.buffer] });
        return array;
      }
      case 'resizable':
        return new Type(new ArrayBuffer(bytes, { maxByteLength: bytes + 64 }));
      case 'shrunk': {
        const resizable = new ArrayBuffer(bytes + 64, { maxByteLength: bytes + 64 });
        const array = new Type(resizable, 0, length);
        resizable.resize(Math.floor(bytes / 2));
        return array;
      }
      case 'lying':
        return Object.defineProperty(new Type(length), 'length', { value: length + 1000 });
      case 'subclass':
        return new (class extends Type {})(length);
      default:
        return new Type(length);
    }
  }

  #proxy({ of, trap }) {
    const target = this.make(of);
    if ((typeof target !== 'object' && typeof target !== 'function') || target === null) return target;
    return new Proxy(target, trap ? { [trap]: hostility } : {});
  }

  /** Every property is a getter, one that throws or one that gives something else each time. */
  #getters({ of, throws }) {
    const target = this.make(of);
    let reads = 0;
    const answer = throws ? hostility : () => (++reads % 3 === 0 ? reads : target);
    const names = [
      'a',
      'b',
      'out',
      'ids',
      'weights',
      'length',
      'shape',
      'gate',
      'up',
      'down',
      'top',
      'threads',
      '0',
    ];
    const object = {};
    for (const name of names) Object.defineProperty(object, name, { get: answer, enumerable: true });
    return object;
  }
}

/** Every place of a recipe tree where something else may stand. */
export function places(recipe, found = []) {
  const children =
    recipe.is === 'array'
      ? recipe.items
      : recipe.is === 'object'
        ? recipe.fields
        : recipe.is === 'call'
          ? recipe.args
          : undefined;
  if (children) {
    for (const key of Object.keys(children)) {
      found.push({ children, key });
      places(children[key], found);
    }
  }
  for (const key of ['init', 'gate', 'up', 'down']) if (recipe[key]?.is) places(recipe[key], found);
  return found;
}

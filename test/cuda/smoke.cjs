// The addon on a GPU, without anything but node: a tensor there and back, a product, a layer, attention. Part of
// scripts/gpu-check.sh, which brings no node_modules: plain CommonJS over the addon's own surface (lib/native.ts).
const assert = require('node:assert');
const path = require('node:path');

async function main() {
  const addon = require(path.join(__dirname, 'molae.node'));
  const device = addon.openDevice(process.argv[2] ?? 'cuda', 0, 0);
  console.log(JSON.stringify(device.info()));

  const read = async (tensor, length) => {
    const values = new Float32Array(length);
    await tensor.read(values);
    return [...values];
  };
  const f32 = (shape, values) => device.fromData('f32', shape, Float32Array.from(values));

  const a = f32([2, 3], [1, 2, 3, 4, 5, 6]);
  const b = f32([3, 2], [1, 0, 0, 1, 1, 1]);
  const c = device.empty('f32', [2, 2]);
  await device.gemm(a, b, c, false, false, 1, 0);
  assert.deepStrictEqual(await read(c, 4), [4, 5, 10, 11]);

  // Two experts of hidden size 2 and intermediate size 1 with relu2: expert i gives y = w * (x0 (i + 1))^2 * x1 * [1, i].
  const experts = [0, 1].map((i) => ({
    gate: f32([1, 2], [i + 1, 0]),
    up: f32([1, 2], [0, 1]),
    down: f32([2, 1], [1, i]),
  }));
  const operator = (name) => ({ perExpert: experts.map((expert) => expert[name]), shared: [] });
  const layer = device.prepareLayer({
    activation: 'relu2',
    groups: [],
    gate: operator('gate'),
    up: operator('up'),
    down: operator('down'),
  });
  const x = f32([2, 2], [1, 2, 3, 1]);
  const y = device.empty('f32', [2, 2]);
  const ids = device.fromData('i32', [2, 1], Int32Array.of(1, 0));
  await layer.forward(x, ids, f32([2, 1], [0.5, 2]), y);
  assert.deepStrictEqual(await read(y, 4), [4, 4, 18, 0]);

  // Two queries of one head over their own keys: the first sees one value, the second both, equally.
  const values = f32([2, 1], [3, 5]);
  const attended = device.empty('f32', [2, 1]);
  const sizes = { heads: 1, kvHeads: 1, headSize: 2, valueSize: 1, scale: 1, window: 0 };
  await device.attention(
    f32([2, 2], [1, 0, 0, 1]),
    f32([2, 2], [1, 2, 1, 2]),
    values,
    [[0, 2, 0, 2]],
    sizes,
    attended,
  );
  assert.deepStrictEqual(await read(attended, 2), [3, 4]);

  // An id that does not exist: an error by the time the result is read, and the device works on.
  const bad = device.fromData('i32', [2, 1], Int32Array.of(1, 7));
  await assert.rejects(
    async () => {
      await layer.forward(x, bad, f32([2, 1], [1, 1]), y);
      await read(y, 4);
    },
    { code: 'INVALID_ARGUMENT' },
  );
  assert.deepStrictEqual(await read(c, 4), [4, 5, 10, 11]);
  assert.throws(() => addon.openDevice('cuda', 999, 0), { code: 'DEVICE_UNAVAILABLE' });
  console.log('smoke test passed');
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});

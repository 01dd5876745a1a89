import { cp, mkdir, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { FilePool } from '../../lib/checkpoint/safetensors/pool.ts';
import { SafetensorsWriter } from '../../lib/checkpoint/safetensors/writer.ts';
import { INDEX_FILE, Shards } from '../../lib/checkpoint/shards.ts';
import { molaeError } from '../support/errors.ts';
import { TINY } from '../support/fixtures.ts';
import { temporaryFolder } from '../support/temporary.ts';

/** Shards of one-byte tensors: file name → { tensor: value }; and an index, unless it is null. */
async function folderOf(
  shards: Record<string, Record<string, number>>,
  index: Record<string, unknown> | null | 'honest' = 'honest',
  dtype: 'U8' | 'I8' = 'U8',
): Promise<string> {
  const folder = await temporaryFolder();
  const honest: Record<string, string> = {};
  for (const [shard, tensors] of Object.entries(shards)) {
    const declarations = Object.keys(tensors).map((name) => ({ name, dtype, shape: [1] }) as const);
    const writer = await SafetensorsWriter.create(join(folder, shard), declarations);
    for (const [name, value] of Object.entries(tensors)) {
      await writer.write(name, Uint8Array.of(value));
      honest[name] = shard;
    }
    await writer.finish();
  }
  const weightMap = index === 'honest' ? honest : index;
  if (weightMap !== null)
    await writeFile(join(folder, INDEX_FILE), JSON.stringify({ weight_map: weightMap }));
  return folder;
}

const TWO = { 's1.safetensors': { a: 1, b: 2 }, 's2.safetensors': { c: 3 } };

describe('Shards', () => {
  test('read tensors out of several files, into given memory where there is some', async () => {
    const shards = await Shards.open(await folderOf(TWO));
    expect([...shards.tensors.keys()]).toEqual(['a', 'b', 'c']);
    expect(shards.tensors.get('c')).toEqual({
      dtype: 'U8',
      shape: [1],
      byteLength: 1,
      shard: 's2.safetensors',
    });
    expect(shards.files).toEqual(['s1.safetensors', 's2.safetensors']);
    const memory = new Uint8Array(2);
    expect([...(await shards.read('c', memory))]).toEqual([3]);
    expect([...memory]).toEqual([3, 0]);
    await expect(shards.read('d')).rejects.toMatchObject(molaeError('BAD_CHECKPOINT', '"d"'));
    await shards.close();
    await shards.close();
    await expect(shards.read('a')).rejects.toMatchObject(molaeError('DISPOSED'));
  });

  test('may be a single model.safetensors, which goes before an index, or one file of any name', async () => {
    const single = await Shards.open(
      await folderOf({ 'model.safetensors': { a: 7 } }, { ghost: 'x.safetensors' }),
    );
    expect([...(await single.read('a'))]).toEqual([7]);
    await single.close();
    const lone = await Shards.open(await folderOf({ 'weights.safetensors': { a: 8 } }, null));
    expect([...(await lone.read('a'))]).toEqual([8]);
    await lone.close();
  });

  test('may be symbolic links out of the folder, as in the cache of Hugging Face', async () => {
    const target = await folderOf(TWO);
    const snapshot = await temporaryFolder();
    for (const name of [...Object.keys(TWO), INDEX_FILE])
      await symlink(join(target, name), join(snapshot, name));
    const shards = await Shards.open(snapshot);
    expect([...(await shards.read('b'))]).toEqual([2]);
    await shards.close();
  });

  test.each<[string, Parameters<typeof folderOf>, string[]]>([
    ['no safetensors at all', [{}, null], ['neither']],
    ['several files without an index', [TWO, null], ['2 safetensors files']],
    ['an index without weights', [TWO, {}], ['weight_map', 'empty']],
    [
      'a missing shard',
      [{ 's1.safetensors': { a: 1 } }, { a: 's1.safetensors', z: 's9.safetensors' }],
      ['s9.safetensors', 'no such file'],
    ],
    [
      'a tensor that only the index has',
      [TWO, { a: 's1.safetensors', b: 's1.safetensors', c: 's2.safetensors', z: 's2.safetensors' }],
      ['s2.safetensors', 'lacks', '"z"'],
    ],
    [
      'a tensor in another shard than indexed',
      [TWO, { a: 's1.safetensors', b: 's2.safetensors', c: 's2.safetensors' }],
      ['s2.safetensors', 'lacks', '"b"'],
    ],
    ['a shard name that is no text', [TWO, { a: 5 }], ['weight_map', '"a"', '5']],
  ])('%s is refused', async (_, args, words) => {
    await expect(Shards.open(await folderOf(...args))).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', ...words),
    );
  });

  test('what a shard holds beyond the index is left alone, also a second copy of an indexed tensor', async () => {
    const shards = await Shards.open(
      await folderOf(
        { 's1.safetensors': { a: 1, b: 9 }, 's2.safetensors': { a: 2, c: 3 } },
        { a: 's2.safetensors', b: 's1.safetensors', c: 's2.safetensors' },
      ),
    );
    expect([...shards.tensors.keys()].sort()).toEqual(['a', 'b', 'c']);
    expect([...(await shards.read('a'))]).toEqual([2]);
    expect([...shards.leftovers]).toEqual([['s1.safetensors', ['a']]]);
    await shards.close();
    const unnamed = await Shards.open(await folderOf(TWO, { a: 's1.safetensors', c: 's2.safetensors' }));
    expect(unnamed.tensors.has('b')).toBe(false);
    expect([...unnamed.leftovers]).toEqual([['s1.safetensors', ['b']]]);
    await unnamed.close();
  });

  test.each([
    '../s1.safetensors',
    '/etc/passwd',
    'a/b.safetensors',
    'a\\b.safetensors',
    '..',
    '.',
    '',
    'C:x',
    's\u0000',
  ])('the shard name %j is refused though such a file may exist', async (name) => {
    const folder = await folderOf(TWO, { a: name });
    await mkdir(join(folder, 'a'));
    await cp(join(folder, 's1.safetensors'), join(folder, 'a', 'b.safetensors'));
    await expect(Shards.open(folder)).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', INDEX_FILE, '"a"', 'name of a file'),
    );
  });

  test('an index that is no JSON, no object or has a name twice is refused', async () => {
    const folder = await folderOf(TWO);
    for (const text of [
      '{',
      '[]',
      '{"weight_map":[]}',
      '{"weight_map":{"a":"s1.safetensors","a":"s2.safetensors"}}',
    ]) {
      await writeFile(join(folder, INDEX_FILE), text);
      await expect(Shards.open(folder), text).rejects.toMatchObject(molaeError('BAD_CHECKPOINT', INDEX_FILE));
    }
  });

  test('a folder that is missing or a file is refused', async () => {
    const folder = await folderOf(TWO);
    await expect(Shards.open(join(folder, 'none'))).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'no such folder'),
    );
    await expect(Shards.open(join(folder, INDEX_FILE))).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'not a folder'),
    );
  });

  test.each<[string, Parameters<typeof folderOf>]>([
    ['another', [{ 'x.safetensors': { q: 1 } }]],
    [
      'one of the same names and sizes in another dtype',
      [{ 'x.safetensors': TWO['s1.safetensors'] }, null, 'I8'],
    ],
  ])('a shard that was replaced by %s while its file was closed is noticed', async (_, args) => {
    const folder = await folderOf(TWO);
    const shards = await Shards.open(folder, { maxOpenFiles: 1 });
    await shards.read('c');
    const other = await folderOf(...args);
    await rename(join(other, 'x.safetensors'), join(folder, 's1.safetensors'));
    await expect(shards.read('a')).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 's1.safetensors', '"a"'),
    );
    await shards.close();
  });

  test('read right through fewer handles than shards, at the same time', async () => {
    const contents = Object.fromEntries(
      Array.from({ length: 12 }, (_, i) => [`s${i}.safetensors`, { [`t${i}`]: i }]),
    );
    const shards = await Shards.open(await folderOf(contents), { maxOpenFiles: 2 });
    const order = Array.from({ length: 240 }, (_, i) => (i * 7) % 12);
    const bytes = await Promise.all(order.map((i) => shards.read(`t${i}`)));
    expect(bytes.map((b) => b[0])).toEqual(order);
    await shards.close();
  });
});

describe('FilePool', () => {
  test('never holds more than its limit, closes the one unused longest, and lends none twice over', async () => {
    const folder = await folderOf({ a: { t: 1 }, b: { t: 2 }, c: { t: 3 } }, null);
    const pool = new FilePool(2);
    const use = (name: string) => pool.use(join(folder, name), async (file) => file);
    const a = await use('a');
    const b = await use('b');
    expect(await use('a')).toBe(a);
    await use('c');
    expect(pool.open).toBe(2);
    await expect(b.read('t')).rejects.toMatchObject(molaeError('DISPOSED'));
    expect([...(await a.read('t'))]).toEqual([1]);
    await pool.close();
    expect(pool.open).toBe(0);
  });

  test('makes a task wait rather than close a file in use', async () => {
    const folder = await folderOf({ a: { t: 1 }, b: { t: 2 } }, null);
    const pool = new FilePool(1);
    const events: string[] = [];
    const first = pool.use(join(folder, 'a'), async (file) => {
      await new Promise((resolve) => setTimeout(resolve, 30));
      events.push(`a ${(await file.read('t'))[0]}`);
    });
    const second = pool.use(join(folder, 'b'), async (file) => {
      expect(pool.open).toBe(1);
      events.push(`b ${(await file.read('t'))[0]}`);
    });
    await Promise.all([first, second]);
    expect(events).toEqual(['a 1', 'b 2']);
    await pool.close();
  });

  test('a file that could not be opened takes no place and may be tried again', async () => {
    const folder = await folderOf({ a: { t: 1 } }, null);
    await rename(join(folder, 'a'), join(folder, 'hidden'));
    const pool = new FilePool(1);
    const read = () => pool.use(join(folder, 'a'), (file) => file.read('t'));
    await expect(read()).rejects.toMatchObject(molaeError('BAD_CHECKPOINT'));
    expect(pool.open).toBe(0);
    await rename(join(folder, 'hidden'), join(folder, 'a'));
    expect([...(await read())]).toEqual([1]);
    await pool.close();
    await rm(folder, { recursive: true });
  });

  test('refuses those who wait when it closes', async () => {
    const folder = await folderOf({ a: { t: 1 }, b: { t: 2 } }, null);
    const pool = new FilePool(1);
    let free = () => {};
    const first = pool.use(join(folder, 'a'), () => new Promise<void>((resolve) => (free = resolve)));
    const second = pool.use(join(folder, 'b'), async () => {});
    const refused = expect(second).rejects.toMatchObject(molaeError('DISPOSED'));
    await new Promise((resolve) => setTimeout(resolve, 10));
    await pool.close();
    await refused;
    free();
    await first;
  });
});

test('the shards of the fixture are sound', async () => {
  const shards = await Shards.open(TINY);
  expect(shards.files).toHaveLength(2);
  expect((await shards.read('model.layers.0.mlp.gate.weight')).byteLength).toBe(16 * 256 * 2);
  await shards.close();
});

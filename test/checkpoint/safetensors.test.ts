import { existsSync } from 'node:fs';
import { mkdir, readFile, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { readFully, writeFully } from '../../lib/checkpoint/files.ts';
import { DTYPE_BYTES, type SafetensorsDtype } from '../../lib/checkpoint/safetensors/dtype.ts';
import { SafetensorsFile } from '../../lib/checkpoint/safetensors/reader.ts';
import { SafetensorsWriter } from '../../lib/checkpoint/safetensors/writer.ts';
import { molaeError } from '../support/errors.ts';
import { TINY } from '../support/fixtures.ts';
import { temporaryFolder } from '../support/temporary.ts';

const F32_PAIR = [
  { name: 'a', dtype: 'F32', shape: [2] },
  { name: 'b', dtype: 'F32', shape: [1] },
] as const;

describe('round trips', () => {
  const dtype = fc.constantFrom(...(Object.keys(DTYPE_BYTES) as SafetensorsDtype[]));
  const tensor = fc.record({
    name: fc.oneof(
      fc.string({ unit: 'grapheme' }),
      fc.constantFrom('__proto__', '0', '17', 'constructor', 'a.b', '"', '\\', '\n'),
    ),
    dtype,
    shape: fc.array(fc.nat(5), { maxLength: 4 }),
  });
  const tensors = fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 8 });

  test('any tensors, written in any order and in parts, read back byte for byte', async () => {
    const folder = await temporaryFolder();
    const path = join(folder, 'x.safetensors');
    await fc.assert(
      fc.asyncProperty(
        tensors,
        fc.infiniteStream(fc.nat(255)),
        fc.infiniteStream(fc.nat(1000)),
        async (list, bytes, random) => {
          const take = (stream: IterableIterator<number>) => stream.next().value as number;
          const contents = new Map(
            list.map(({ name, dtype: type, shape }) => {
              const length = shape.reduce((product, size) => product * size, DTYPE_BYTES[type]);
              return [name, Uint8Array.from({ length: Math.min(length, 5000) }, () => take(bytes))] as const;
            }),
          );
          const writer = await SafetensorsWriter.create(path, list);
          const parts = [...contents].flatMap(([name, data]) => {
            const cut = take(random) % (data.byteLength + 1);
            return [
              { name, offset: 0, data: data.subarray(0, cut), key: take(random) },
              { name, offset: cut, data: data.subarray(cut), key: take(random) },
            ];
          });
          parts.sort((a, b) => a.key - b.key);
          await Promise.all(parts.map((part) => writer.write(part.name, part.data, part.offset)));
          await writer.finish();
          expect((await stat(path)).size).toBe(writer.byteLength);

          const file = await SafetensorsFile.open(path);
          expect([...file.tensors.keys()].sort()).toEqual(list.map(({ name }) => name).sort());
          for (const { name, dtype: type, shape } of list) {
            const entry = file.tensors.get(name);
            expect(entry).toMatchObject({ dtype: type, shape });
            expect((entry?.position ?? 0) % DTYPE_BYTES[type]).toBe(0);
            expect(await file.read(name)).toEqual(contents.get(name));
          }
          expect(file.metadata).toEqual(new Map([['format', 'pt']]));
          await file.close();
        },
      ),
      { numRuns: 60 },
    );
  });

  test('a header is padded with spaces to 8 bytes and lists the tensors in declared order', async () => {
    const path = join(await temporaryFolder(), 'x.safetensors');
    const writer = await SafetensorsWriter.create(path, [
      { name: 'z', dtype: 'U8', shape: [1] },
      { name: '7', dtype: 'F32', shape: [1] },
    ]);
    await writer.write('7', new Uint8Array(4).fill(7));
    await writer.write('z', new Uint8Array(1).fill(9));
    await writer.finish();
    const bytes = await readFile(path);
    const length = Number(bytes.readBigUInt64LE(0));
    expect(length % 8).toBe(0);
    expect(bytes.toString('utf8', 8, 8 + length).trimEnd()).toBe(
      '{"__metadata__":{"format":"pt"},"z":{"dtype":"U8","shape":[1],"data_offsets":[4,5]},"7":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    );
    expect([...bytes.subarray(8 + length)]).toEqual([7, 7, 7, 7, 9]);
  });

  test('a file of another writer, copied tensor by tensor, keeps every entry and the data byte for byte', async () => {
    const source = join(TINY, 'model-00001-of-00002.safetensors');
    const file = await SafetensorsFile.open(source);
    const path = join(await temporaryFolder(), 'copy.safetensors');
    const declarations = [...file.tensors].map(([name, { dtype: type, shape }]) => ({
      name,
      dtype: type,
      shape,
    }));
    const writer = await SafetensorsWriter.create(path, declarations);
    for (const name of [...file.tensors.keys()].reverse()) await writer.write(name, await file.read(name));
    await writer.finish();
    await file.close();
    const data = (bytes: Buffer) => bytes.subarray(8 + Number(bytes.readBigUInt64LE(0)));
    expect(data(await readFile(path)).equals(data(await readFile(source)))).toBe(true);
    const copy = await SafetensorsFile.open(path);
    const entries = (from: SafetensorsFile) =>
      [...from.tensors].map(([name, { dtype: type, shape }]) => [name, type, shape]);
    expect(entries(copy)).toEqual(entries(file));
    await copy.close();
  });
});

describe('SafetensorsFile', () => {
  async function pair(): Promise<string> {
    const path = join(await temporaryFolder(), 'pair.safetensors');
    const writer = await SafetensorsWriter.create(path, F32_PAIR);
    await writer.write('a', new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]));
    await writer.write('b', new Uint8Array([9, 10, 11, 12]));
    await writer.finish();
    return path;
  }

  test('fills the memory it is given, and no more of it than the tensor has', async () => {
    const file = await SafetensorsFile.open(await pair());
    const memory = new Uint8Array(10).fill(0xee);
    const bytes = await file.read('a', memory);
    expect(bytes.buffer).toBe(memory.buffer);
    expect([...bytes]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect([...memory.subarray(8)]).toEqual([0xee, 0xee]);
    await file.close();
  });

  test('reads a range, and refuses one past the end of the tensor', async () => {
    const file = await SafetensorsFile.open(await pair());
    expect([...(await file.readRange('a', 4, 4))]).toEqual([5, 6, 7, 8]);
    await expect(file.readRange('a', 4, 5)).rejects.toMatchObject(
      molaeError('INVALID_ARGUMENT', 'byteLength', '5'),
    );
    await expect(file.readRange('a', -1, 1)).rejects.toMatchObject(
      molaeError('INVALID_ARGUMENT', 'byteOffset'),
    );
    await file.close();
  });

  test('refuses memory that is too small and names that do not exist', async () => {
    const file = await SafetensorsFile.open(await pair());
    await expect(file.read('a', new Uint8Array(7))).rejects.toMatchObject(
      molaeError('INVALID_ARGUMENT', '8 bytes', 'into'),
    );
    await expect(file.read('toString')).rejects.toMatchObject(molaeError('BAD_CHECKPOINT', '"toString"'));
    await file.close();
  });

  test('refuses reads after close, which may be called twice', async () => {
    const file = await SafetensorsFile.open(await pair());
    await file[Symbol.asyncDispose]();
    await file.close();
    await expect(file.read('a')).rejects.toMatchObject(molaeError('DISPOSED', 'pair.safetensors'));
  });

  test('a file cut off anywhere is refused', async () => {
    const path = await pair();
    const whole = await readFile(path);
    const cut = join(await temporaryFolder(), 'cut.safetensors');
    for (let length = 0; length < whole.byteLength; length += 5) {
      await writeFile(cut, whole.subarray(0, length));
      await expect(SafetensorsFile.open(cut), `${length} bytes`).rejects.toMatchObject(
        molaeError('BAD_CHECKPOINT', cut),
      );
    }
    await writeFile(cut, Buffer.concat([whole, Buffer.alloc(1)]));
    await expect(SafetensorsFile.open(cut)).rejects.toMatchObject(molaeError('BAD_CHECKPOINT', '1 bytes'));
  });

  test('a file that shrinks while it is open is a typed error', async () => {
    const path = await pair();
    const file = await SafetensorsFile.open(path);
    await truncate(path, (await stat(path)).size - 2);
    await expect(file.read('b')).rejects.toMatchObject(molaeError('BAD_CHECKPOINT', path, 'shrank'));
    expect((await file.read('a')).byteLength).toBe(8);
    await file.close();
  });

  test('a missing file and a folder are refused', async () => {
    const folder = await temporaryFolder();
    for (const path of [join(folder, 'none.safetensors'), folder]) {
      await expect(SafetensorsFile.open(path)).rejects.toMatchObject(molaeError('BAD_CHECKPOINT', path));
    }
  });
});

describe('positional transfers', () => {
  test('go on after short reads and writes, at the right positions', async () => {
    const disk = Uint8Array.from({ length: 40 }, (_, i) => i);
    const target = new Uint8Array(20);
    const handle = {
      read: async (into: Uint8Array, offset: number, length: number, position: number) => {
        const bytesRead = Math.min(3, length);
        into.set(disk.subarray(position, position + bytesRead), offset);
        return { bytesRead, buffer: into };
      },
      write: async (from: Uint8Array, offset: number, length: number, position: number) => {
        const bytesWritten = Math.min(3, length);
        disk.set(from.subarray(offset, offset + bytesWritten), position);
        return { bytesWritten, buffer: from };
      },
    };
    await readFully(handle as never, 'f', target, 10);
    expect(target).toEqual(disk.subarray(10, 30));
    await writeFully(handle as never, 'f', new Uint8Array(7).fill(0xaa), 2);
    expect([...disk.subarray(1, 10)]).toEqual([1, ...new Array(7).fill(0xaa), 9]);
  });

  test('never ask the system for 2 GiB at once, and cover more than that', async () => {
    const target = new Uint8Array(2 ** 31 + 100);
    let end = 5;
    const handle = {
      read: async (into: Uint8Array, offset: number, length: number, position: number) => {
        expect(length).toBeLessThan(2 ** 31);
        expect([offset, position]).toEqual([end - 5, end]);
        end += length;
        return { bytesRead: length, buffer: into };
      },
    };
    await readFully(handle as never, 'f', target, 5);
    expect(end).toBe(2 ** 31 + 105);
  });
});

describe('SafetensorsWriter', () => {
  const create = async () => {
    const path = join(await temporaryFolder(), 'w.safetensors');
    return { path, writer: await SafetensorsWriter.create(path, F32_PAIR) };
  };

  test('refuses names twice, the metadata key, broken Unicode, unknown dtypes and senseless shapes', async () => {
    const path = join(await temporaryFolder(), 'w.safetensors');
    const [a] = F32_PAIR;
    for (const list of [
      [a, a],
      [{ ...a, name: '__metadata__' }],
      [{ ...a, name: 'x\ud800' }],
      [{ ...a, dtype: 'toString' as never }],
      [{ ...a, shape: [-1] }],
      [{ ...a, shape: [1.5] }],
      [{ ...a, shape: [2 ** 40, 2 ** 40] }],
    ]) {
      await expect(SafetensorsWriter.create(path, list)).rejects.toMatchObject(
        molaeError('INVALID_ARGUMENT'),
      );
    }
    expect(existsSync(path)).toBe(false);
  });

  test('refuses undeclared names, bytes past the end and bytes written before', async () => {
    const { writer } = await create();
    const refused = (words: string) => molaeError('INVALID_ARGUMENT', words);
    await expect(writer.write('c', new Uint8Array(1))).rejects.toMatchObject(refused('"c"'));
    await expect(writer.write('b', new Uint8Array(5))).rejects.toMatchObject(refused('past its end'));
    await writer.write('a', new Uint8Array(4), 2);
    await expect(writer.write('a', new Uint8Array(1), 5)).rejects.toMatchObject(refused('written before'));
    await expect(writer.write('a', new Uint8Array(3), 0)).rejects.toMatchObject(refused('written before'));
    await writer.write('a', new Uint8Array(2), 0);
    await writer.write('a', new Uint8Array(2), 6);
    await writer.write('b', new Uint8Array(4));
    await writer.finish();
  });

  test('of two writes of one tensor at the same time, one is refused', async () => {
    const { writer } = await create();
    const results = await Promise.allSettled([
      writer.write('a', new Uint8Array(8)),
      writer.write('a', new Uint8Array(8)),
    ]);
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
    await writer.abort();
  });

  test('does not finish while bytes are missing, and says of which tensor', async () => {
    const { writer, path } = await create();
    await writer.write('a', new Uint8Array(8));
    await writer.write('b', new Uint8Array(3));
    await expect(writer.finish()).rejects.toMatchObject(
      molaeError('INVALID_ARGUMENT', '"b"', '4 bytes', '3'),
    );
    await writer.write('b', new Uint8Array(1), 3);
    await writer.finish();
    await (await SafetensorsFile.open(path)).close();
    await expect(writer.write('b', new Uint8Array(1))).rejects.toMatchObject(molaeError('DISPOSED'));
  });

  test('an unfinished file is refused by the reader even when all its bytes are there', async () => {
    const { writer, path } = await create();
    await writer.write('a', new Uint8Array(8));
    await writer.write('b', new Uint8Array(4));
    expect((await stat(path)).size).toBe(writer.byteLength);
    await expect(SafetensorsFile.open(path)).rejects.toMatchObject(
      molaeError('BAD_CHECKPOINT', 'never finished'),
    );
    await writer.finish();
    await (await SafetensorsFile.open(path)).close();
  });

  test('abort deletes the unfinished file, and leaves a finished one alone', async () => {
    const first = await create();
    await first.writer[Symbol.asyncDispose]();
    expect(existsSync(first.path)).toBe(false);
    const second = await create();
    await second.writer.write('a', new Uint8Array(8));
    await second.writer.write('b', new Uint8Array(4));
    await second.writer.finish();
    await second.writer.abort();
    expect(existsSync(second.path)).toBe(true);
  });

  test('a folder that does not exist is an IO error with path and cause', async () => {
    const path = join(await temporaryFolder(), 'none', 'w.safetensors');
    const error = await SafetensorsWriter.create(path, F32_PAIR).catch((e: unknown) => e);
    expect(error).toMatchObject({ ...molaeError('IO', path), cause: { code: 'ENOENT' } });
  });

  test.skipIf(!existsSync('/dev/full'))('a full disk is an IO error with path and cause', async () => {
    const path = join(await temporaryFolder(), 'full.safetensors');
    await symlink('/dev/full', path);
    const error = await SafetensorsWriter.create(path, F32_PAIR).catch((e: unknown) => e);
    expect(error).toMatchObject({ ...molaeError('IO', path), cause: { code: 'ENOSPC' } });
    expect(existsSync('/dev/full')).toBe(true);
  });

  test('a path that is a folder is an IO error', async () => {
    const path = join(await temporaryFolder(), 'folder');
    await mkdir(path);
    await expect(SafetensorsWriter.create(path, F32_PAIR)).rejects.toMatchObject(molaeError('IO', path));
  });
});

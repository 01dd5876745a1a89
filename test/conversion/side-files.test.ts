import { mkdir, readdir, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { copySideFiles } from '../../lib/conversion/side-files.ts';
import { molaeError } from '../support/errors.ts';
import { temporaryFolder } from '../support/temporary.ts';

async function folders(): Promise<[from: string, to: string]> {
  const folder = await temporaryFolder();
  const both: [string, string] = [join(folder, 'from'), join(folder, 'to')];
  for (const path of both) await mkdir(path);
  return both;
}

test('tokenizer, settings, code and licence go along; weights, their index, config.json and the model card do not', async () => {
  const [from, to] = await folders();
  const wanted = [
    'tokenizer.json',
    'tokenizer.model',
    'merges.txt',
    'chat_template.jinja',
    'modeling.py',
    'LICENSE',
  ];
  const others = [
    'config.json',
    'model.safetensors',
    'model.safetensors.index.json',
    'README.md',
    'model.bin',
  ];
  for (const name of [...wanted, ...others]) await writeFile(join(from, name), name);
  await mkdir(join(from, 'folder.json'));
  await copySideFiles(from, to);
  expect((await readdir(to)).sort()).toEqual(wanted.sort());
});

test('a file of more than 256 MiB is no side file', async () => {
  const [from, to] = await folders();
  for (const [name, size] of [
    ['large.json', 256 * 1024 ** 2 + 1],
    ['small.json', 1000],
  ] as const) {
    await writeFile(join(from, name), '');
    await truncate(join(from, name), size);
  }
  await copySideFiles(from, to);
  expect(await readdir(to)).toEqual(['small.json']);
});

test('a link to nowhere is an IO error with its name', async () => {
  const [from, to] = await folders();
  await symlink('nowhere', join(from, 'tokenizer.json'));
  await expect(copySideFiles(from, to)).rejects.toThrow(
    expect.objectContaining(molaeError('IO', join(from, 'tokenizer.json'))),
  );
});

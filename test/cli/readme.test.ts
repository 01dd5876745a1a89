import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { COMMANDS } from '../../lib/cli/commands.ts';
import { parse } from '../../lib/cli/parse.ts';
import { builtCli, compile, ROOT, runNode } from './support.ts';

const cli = builtCli();
const readme = await readFile(join(ROOT, 'README.md'), 'utf8');

function blocks(language: string): string[] {
  return [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, 'gms'))].map(
    (found) => found[1] as string,
  );
}

it("README's library example compiles under strict and runs", { timeout: 120_000 }, async () => {
  const [example] = blocks('ts');
  const file = join(cli.folder, 'readme.ts');
  await writeFile(file, (example as string).replace("'molae'", "'./index.js'"));
  const options = [
    '--module',
    'nodenext',
    '--target',
    'es2022',
    '--lib',
    'es2023,esnext.disposable',
    '--types',
    'node',
  ];
  await compile([
    file,
    '--ignoreConfig',
    '--strict',
    '--skipLibCheck',
    '--noUncheckedIndexedAccess',
    ...options,
  ]);
  await mkdir(join(cli.scratch, 'test'));
  await symlink(join(ROOT, 'test/fixtures'), join(cli.scratch, 'test/fixtures'));
  const { status, stdout, stderr } = await runNode([join(cli.folder, 'readme.js')], cli.scratch);
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  expect(stdout).toMatch(
    /Chose group size 16.*\n12 factorizations, worst relative error 0\.\d+\noutput error of layer 2: 0\.\d+\n/,
  );
});

/** A command line as a shell would split it: at spaces, but not inside quotes. */
function words(line: string): string[] {
  return [...line.matchAll(/"([^"]*)"|\S+/g)].map(([word, quoted]) => quoted ?? word);
}

it("README's command lines, and those of the help, are right usage", () => {
  const lines = blocks('(?:sh)?')
    .flatMap((block) => block.split('\n'))
    .map((line) => line.replace(/^\$ /, ''))
    .filter((line) => line.startsWith('molae '))
    .map((line) => words(line.replace(/ +#.*/, '')).slice(1));
  const examples = COMMANDS.flatMap((command) => command.examples).map(([line]) =>
    words(line.replace(/ [|>].*/, '')),
  );
  expect(lines.length).toBeGreaterThan(5);
  for (const line of [...lines, ...examples]) {
    const request = parse(line, COMMANDS);
    expect(request.kind, line.join(' ')).toBe('run');
    if (request.kind === 'run') request.readArguments();
  }
});

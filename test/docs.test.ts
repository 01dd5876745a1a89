import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { builtCli, compile, ROOT, runNode } from './cli/support.ts';
import { deadline } from './support/deadline.ts';
import { TINY } from './support/fixtures.ts';

const cli = builtCli();
const pages = [
  join(ROOT, 'README.md'),
  join(ROOT, 'CONTRIBUTING.md'),
  join(ROOT, 'CHANGELOG.md'),
  ...(await readdir(join(ROOT, 'docs')))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(ROOT, 'docs', name)),
];

interface Block {
  readonly page: string;
  readonly line: number;
  readonly language: 'ts' | 'sh';
  readonly code: string;
  /** Why it is not run: `<!-- not run: why -->` above it. */
  readonly notRun: string | undefined;
}

/** The ts and sh blocks of a page, in their order; the indentation of a list goes. */
async function blocksOf(page: string): Promise<Block[]> {
  const text = await readFile(page, 'utf8');
  const fence =
    /(?:^ *<!-- not run: (?<notRun>.+?) -->\n+)?^(?<indent> *)```(?<language>ts|sh)\n(?<code>.*?)^ *```$/gms;
  return [...text.matchAll(fence)].map(({ groups, index }) => ({
    page: basename(page),
    line: text.slice(0, index).split('\n').length,
    language: groups?.language as 'ts' | 'sh',
    code: (groups?.code ?? '').replaceAll(new RegExp(`^${groups?.indent}`, 'gm'), ''),
    notRun: groups?.notRun,
  }));
}

const blocks = (await Promise.all(pages.map(blocksOf))).flat();

/** A reader's folder: the package installed, a model, a text, `molae` on the path. */
async function newFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'molae-docs-'));
  await mkdir(join(folder, 'node_modules/molae'), { recursive: true });
  await mkdir(join(folder, 'test'));
  await mkdir(join(folder, 'bin'));
  await copyFile(join(ROOT, 'package.json'), join(folder, 'node_modules/molae/package.json'));
  await symlink(cli.folder, join(folder, 'node_modules/molae/dist'));
  await symlink(TINY, join(folder, 'model'));
  await symlink(join(ROOT, 'test/fixtures'), join(folder, 'test/fixtures'));
  await copyFile(join(ROOT, 'test/fixtures/moby-dick.txt'), join(folder, 'text.txt'));
  await writeFile(
    join(folder, 'bin/molae'),
    `#!/bin/sh\nexec "${process.execPath}" "${join(cli.folder, 'cli/main.js')}" "$@"\n`,
  );
  await chmod(join(folder, 'bin/molae'), 0o755);
  return folder;
}

describe('code blocks', () => {
  it('are run but for a few, which say why not', () => {
    const left = blocks.filter(({ notRun }) => notRun !== undefined);
    expect(blocks.length).toBeGreaterThan(20);
    expect(left.length, left.map(({ page, line }) => `${page}:${line}`).join(' ')).toBeLessThanOrEqual(9);
  });

  // All at once: the compiler takes seconds to start.
  const compiled = new Map<Block, string>();
  beforeAll(async () => {
    const sources = await newFolder();
    const examples = blocks.filter(({ language, notRun }) => language === 'ts' && notRun === undefined);
    await mkdir(join(sources, 'node_modules/@types'), { recursive: true });
    await symlink(join(ROOT, 'node_modules/@types/node'), join(sources, 'node_modules/@types/node'));
    await symlink(join(ROOT, 'node_modules/undici-types'), join(sources, 'node_modules/undici-types'));
    const files: string[] = [];
    for (const { page, line, code } of examples) {
      files.push(join(sources, `${page.replace('.md', '')}-${line}.mts`));
      await writeFile(files.at(-1) as string, code);
    }
    const config = {
      compilerOptions: {
        target: 'es2022',
        lib: ['es2023', 'esnext.disposable'],
        module: 'nodenext',
        types: ['node'],
        strict: true,
        noUncheckedIndexedAccess: true,
      },
      files,
    };
    await writeFile(join(sources, 'tsconfig.json'), JSON.stringify(config));
    await compile(['-p', join(sources, 'tsconfig.json')]);
    for (const [i, block] of examples.entries())
      compiled.set(block, await readFile((files[i] as string).replace('.mts', '.mjs'), 'utf8'));
    await rm(sources, { recursive: true });
  }, deadline(120));

  it.each(pages.map((page) => basename(page)))(
    'of %s run, one after the other, as a reader would',
    async (page) => {
      const folder = await newFolder();
      onTestFinished(() => rm(folder, { recursive: true, force: true }));
      for (const block of blocks.filter((other) => other.page === page && other.notRun === undefined)) {
        const place = `${page}:${block.line}`;
        if (block.language === 'ts') {
          const file = join(folder, `example-${block.line}.mjs`);
          await writeFile(file, compiled.get(block) as string);
          const { status, stderr } = await runNode([file], folder);
          expect(status, `${place}\n${stderr}`).toBe(0);
        } else {
          const env = { ...process.env, PATH: `${join(folder, 'bin')}:${process.env.PATH}` };
          const done = promisify(execFile)('bash', ['-euo', 'pipefail', '-c', block.code], {
            cwd: folder,
            env,
          });
          await done.catch((error) => expect.fail(`${place}\n${error.stderr}`));
        }
      }
    },
    deadline(180),
  );
});

describe('npm run docs', () => {
  it('writes an entry for everything that is exported, and nothing internal', async () => {
    const { status, stderr } = await runNode([join(ROOT, 'scripts/docs.mjs')], ROOT);
    expect(status, stderr).toBe(0);
    const reference = await readFile(join(ROOT, 'build/docs/reference.md'), 'utf8');
    for (const name of Object.keys(await import('../lib/index.ts')))
      expect(reference).toContain(`### ${name}\n`);
    expect(reference).not.toMatch(/@internal|#private/);
    const headings = [...reference.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
      (heading as string).toLowerCase().replaceAll(/[^\w-]/g, ''),
    );
    const anchors = headings.map((anchor, i) => {
      const earlier = headings.slice(0, i).filter((other) => other === anchor).length;
      return earlier > 0 ? `${anchor}-${earlier}` : anchor;
    });
    const links = [...reference.matchAll(/^\[`.*$/gm)].flatMap(([line]) => [
      ...line.matchAll(/\[`(\w+)`\]\(#([\w-]+)\)/g),
    ]);
    const leadsTo = (anchor: string) =>
      /^\w+/.exec(reference.split(/^#+ /m)[anchors.indexOf(anchor) + 1] ?? '');
    for (const [, name, anchor] of links) expect(leadsTo(anchor as string)?.[0]).toBe(name);
    expect(new Set(links.map(([, , anchor]) => anchor)).size).toBe(links.length);
    // What is said of it comes before what it looks like.
    expect(reference).toMatch(/^### Model\n\nA whole decoder model on a device[^#]*```ts\nclass Model \{/m);
  });
});

describe('troubleshooting', () => {
  it('has every error code of the source, with a meaning and a mend, and no other', async () => {
    const source = await readFile(join(ROOT, 'lib/errors.ts'), 'utf8');
    const union = /export type MolaeErrorCode =\n(.*?)\n\n/s.exec(source)?.[1] ?? '';
    const page = await readFile(join(ROOT, 'docs/troubleshooting.md'), 'utf8');
    const rows = [...page.matchAll(/^\| `([A-Z_]+)` \| (.+?) \| (.+?) \|$/gm)].map((row) => row[1]);
    expect(rows.sort()).toEqual([...union.matchAll(/'([A-Z_]+)'/g)].map((found) => found[1]).sort());
  });
});

describe('links', () => {
  it.each(pages.map((page) => [basename(page), page]))(
    'of %s lead to files that are there',
    async (_, page) => {
      const text = await readFile(page, 'utf8');
      const targets = [...text.matchAll(/\]\((?!https?:|#)([^)#]+)/g)].map((found) => found[1] as string);
      for (const target of targets) expect(existsSync(join(page, '..', target)), target).toBe(true);
    },
  );
});

import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { METHODS } from '../../lib/methods/methods.ts';
import { expertCoverage } from '../../lib/model/coverage.ts';
import { Model } from '../../lib/model/model.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { sampleWindows } from '../../lib/model/windows.ts';
import { TINY } from '../support/fixtures.ts';
import { builtCli, ROOT } from './support.ts';

const cli = builtCli();
const text = join(cli.scratch, 'text.txt');
await writeFile(text, (await readFile(join(ROOT, 'test/fixtures/moby-dick.txt'), 'utf8')).slice(0, 6000));
const short = join(cli.scratch, 'short.txt');
await writeFile(short, 'It was the best of times, it was the worst of times. '.repeat(4));

const compare = (...args: string[]) => cli.run('compare', TINY, ...args);
const QUICK = ['--target-ratio', '0.3', '--window', '64', '--calibrate-tokens', '256'];

describe('compare', () => {
  it('prints one JSON object with a row for the model as it is, every method, target and group size', async () => {
    const { stdout, status } = await compare(
      '--text',
      text,
      ...QUICK,
      '--methods',
      'stacked-svd,hc-smoe,q8',
      '--group-size',
      '2,8',
      '--json',
    );
    expect(status).toBe(0);
    const { rows, tokens, window, checkpoint, coverage } = JSON.parse(stdout);
    expect({ window, checkpoint }).toEqual({ window: 64, checkpoint: TINY });
    expect(tokens.calibration).toBe(256);
    expect(coverage.map(({ layer }: { layer: number }) => layer)).toEqual([0, 1, 2, 3]);
    for (const { expertTokens, fewestTokens, medianTokens, unusedExperts } of coverage) {
      // 256 tokens, each to 4 of 16 experts
      expect(expertTokens).toHaveLength(16);
      expect(expertTokens.reduce((a: number, b: number) => a + b)).toBe(4 * 256);
      const sorted = [...expertTokens].sort((a, b) => a - b);
      expect([fewestTokens, medianTokens]).toEqual([sorted[0], sorted[8]]);
      expect(unusedExperts).toHaveLength(expertTokens.filter((count: number) => count === 0).length);
    }
    expect(tokens.evaluation).toBeGreaterThan(200);
    expect(rows.map((row: Record<string, unknown>) => [row.method, row.groupSize])).toEqual([
      ['dense', null],
      ['stacked-svd', 2],
      ['stacked-svd', 8],
      ['hc-smoe', null],
      ['q8', null],
    ]);
    for (const row of rows) {
      for (const field of ['ratio', 'perplexity', 'seconds', 'expertParameters', 'bytes', 'flopsPerToken']) {
        expect(row[field], field).toEqual(expect.any(Number));
      }
    }
    expect(rows[0].ratio).toBe(1);
    expect(rows[1].ratio).toBeLessThanOrEqual(0.7);
    expect(rows[4].bytes / rows[0].bytes).toBeCloseTo(8.5 / 16, 12);
  });

  it('shows a table, and writes JSON, Markdown and charts where it is told to', async () => {
    const out = join(cli.scratch, 'compared');
    const { stdout, stderr, status } = await compare(
      '--text',
      text,
      ...QUICK,
      '--methods',
      'stacked-svd,svd',
      '--group-size',
      '1,4',
      '--out',
      out,
    );
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    const lines = stdout.split('\n');
    expect(lines[0]).toMatch(/^method +k +removed +perplexity +above dense +bytes +FLOPs\/token +time$/);
    expect(lines[1]).toMatch(/^dense .* 0\.0% /);
    // Under each other: header and rows end in the same column.
    expect(lines[3]?.length).toBe(lines[0]?.length);
    expect(lines[3]?.indexOf('×')).toBe((lines[0]?.indexOf('bytes') as number) + 'bytes'.length - 2);
    expect(lines[3]).toMatch(/^stacked-svd +4 +30\.\d% .*% +\d\.\d MB \(0\.\d\d×\)/);
    expect(stdout.replaceAll('\n', ' ')).toMatch(
      /looked at 256 tokens at most; perplexity is on \d+ others, in windows of 64/,
    );
    expect((await readdir(out)).sort()).toEqual([
      'compare-bytes.svg',
      'compare-group-size.svg',
      'compare-parameters.svg',
      'compare.json',
      'compare.md',
    ]);
    const read = (name: string) => readFile(join(out, name), 'utf8');
    expect(JSON.parse(await read('compare.json')).rows).toHaveLength(4);
    expect(await read('compare.md')).toMatch(
      /^\| method \| k .*\n\| --- \| ---: .*\n\| dense \| {2}\| 0\.0% \|/,
    );
    for (const name of ['bytes', 'group-size', 'parameters']) {
      const svg = await read(`compare-${name}.svg`);
      expect(svg).toMatch(/^<svg [\s\S]*stacked-svd[\s\S]*<\/svg>\n$/);
      expect(svg).not.toMatch(/NaN|Infinity|undefined/);
    }
  });

  it('refuses what is there before any work, and with --force replaces a comparison whole, and nothing else', async () => {
    const out = join(cli.scratch, 'twice');
    const once = (...more: string[]) =>
      compare('--text', text, ...QUICK, '--methods', 'q8,svd', '--out', out, ...more);
    expect(await once()).toMatchObject({ status: 0 });
    await writeFile(join(out, 'compare-group-size.svg'), 'of a former run');
    await writeFile(join(out, 'notes.txt'), "the user's own");
    const again = await once();
    expect(again).toMatchObject({ status: 1, stdout: '' });
    expect(again.stderr).toMatch(/^molae: The output .*twice exists; use force \(--force\) to replace it\n/);
    expect(await once('--force')).toMatchObject({ status: 0 });
    expect((await readdir(out)).sort()).toEqual([
      'compare-bytes.svg',
      'compare-parameters.svg',
      'compare.json',
      'compare.md',
      'notes.txt',
    ]);
    const other = await compare('--text', text, ...QUICK, '--out', cli.scratch);
    expect(other).toMatchObject({
      status: 1,
      stdout: '',
      stderr: expect.stringContaining('is no comparison'),
    });
  });

  it.each(['/proc/compared', '/proc/some/where', '/sys'])(
    'refuses to write to %s, and does not hang',
    async (out) => {
      const { status, stdout, stderr } = await compare('--text', text, ...QUICK, '--out', out);
      expect({ status, stdout }, stderr).toEqual({ status: 1, stdout: '' });
      expect(stderr).toContain(out);
    },
  );

  it('leaves no folder behind where it fails', async () => {
    const out = join(cli.scratch, 'nothing');
    const { status } = await compare('--text', short, '--target-ratio', '0.3', '--out', out);
    expect(status).toBe(2);
    expect(await readdir(cli.scratch)).not.toContain('nothing');
  });

  it('lets methods look at windows from all over their part of the text', async () => {
    const ids = (await Tokenizer.open(TINY)).encode(await readFile(text, 'utf8'));
    const sampled = sampleWindows(ids.slice(0, Math.floor(0.8 * ids.length)), 256, 64);
    await using model = await Model.open(TINY);
    const wanted = await expertCoverage(model, sampled, { window: 64 });
    const { stdout } = await compare('--text', text, ...QUICK, '--methods', 'svd', '--json');
    expect(JSON.parse(stdout).coverage).toEqual(wanted);
  });

  it('judges by another text where one is given, and may then look at all of the first', async () => {
    const other = join(cli.scratch, 'other.txt');
    await writeFile(
      other,
      (await readFile(join(ROOT, 'test/fixtures/moby-dick.txt'), 'utf8')).slice(6000, 7000),
    );
    const { stdout } = await compare(
      '--text',
      text,
      '--eval-text',
      other,
      '--target-ratio',
      '0.3',
      '--window',
      '64',
      '--methods',
      'reap',
      '--json',
    );
    const { tokens } = JSON.parse(stdout);
    expect(tokens.calibration).toBeGreaterThan(2 * tokens.evaluation);
  });

  it.each<[string, string[], number, string]>([
    ['no text', ['--target-ratio', '0.3'], 2, '--text <file>'],
    [
      'force without a folder',
      ['--text', text, '--target-ratio', '0.3', '--force'],
      2,
      '--force needs --out',
    ],
    ['no target', ['--text', text], 2, '--target-ratio <p,…>'],
    ['a target of 1', ['--text', text, '--target-ratio', '0.3,1'], 2, 'between 0 and 1'],
    ['a target that cannot be met', ['--text', text, '--target-ratio', '0.9'], 2, 'reap: '],
    [
      'an unknown method',
      ['--text', text, '--target-ratio', '0.3', '--methods', 'svd,magic'],
      2,
      METHODS.map(({ name }) => name).join(','),
    ],
    [
      'a group size that does not divide',
      ['--text', text, '--target-ratio', '0.3', '--group-size', '3'],
      2,
      'for --group-size',
    ],
    ['too little text', ['--text', short, '--target-ratio', '0.3'], 2, 'tokens to calibrate with'],
    ['the same text twice', ['--text', text, '--eval-text', text, '--target-ratio', '0.3'], 2, 'same file'],
    [
      'the same text by two relative paths',
      ['--text', 'text.txt', '--eval-text', './text.txt', '--target-ratio', '0.3'],
      2,
      'same file',
    ],
    ['a folder that cannot be made', ['--text', text, '--target-ratio', '0.3', '--out', text], 1, 'text.txt'],
  ])('%s is told apart, with nothing on stdout', async (_, args, status, words) => {
    const result = await compare(...args);
    expect(result).toMatchObject({ status, stdout: '' });
    expect(result.stderr).toContain(words);
  });

  it('tells in its help what is required, and shows no default of it', async () => {
    const { stdout } = await cli.run('compare', '--help');
    const options = stdout.replaceAll(/\s+/g, ' ').split(' --');
    for (const option of ['text <file>', 'target-ratio <p,…>'])
      expect(options).toContainEqual(expect.stringMatching(new RegExp(`^${option} [^(]*; required$`)));
  });

  it('a converted checkpoint is refused: it has no dense experts left', async () => {
    const out = join(cli.scratch, 'latent');
    await cli.run('convert', TINY, out, '--group-size', '4', '--latent-size', '64');
    const result = await cli.run('compare', out, '--text', text, '--target-ratio', '0.3');
    expect(result).toMatchObject({
      status: 1,
      stdout: '',
      stderr: expect.stringContaining('was converted already'),
    });
  });
});

it('the README shows the command', async () => {
  expect(await readFile(join(ROOT, 'README.md'), 'utf8')).toContain('molae compare');
});

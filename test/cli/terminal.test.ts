import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { COMMANDS } from '../../lib/cli/commands.ts';
import { commandHelp, generalHelp } from '../../lib/cli/help.ts';
import { TINY } from '../support/fixtures.ts';
import { builtCli, ROOT } from './support.ts';

const cli = builtCli();

const TEXT = join(ROOT, 'test/fixtures/moby-dick.txt');

/** From util-linux: runs a command on a terminal of its own. */
const SCRIPT = '/usr/bin/script';

/** What a terminal gets, with `columns`, from a command line of molae. */
async function onTerminal(columns: number, env: Record<string, string>, ...args: string[]): Promise<string> {
  const molae = [process.execPath, join(cli.folder, 'cli/main.js'), ...args].map((word) => `'${word}'`);
  const { stdout } = await promisify(execFile)(
    SCRIPT,
    ['-qec', `stty cols ${columns}; ${molae.join(' ')}`, '/dev/null'],
    { cwd: cli.scratch, env: { ...process.env, ...env } },
  );
  return stdout.replaceAll('\r\n', '\n');
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const ESCAPES = /\u001b|\r/;

describe.skipIf(!existsSync(SCRIPT))('on a terminal', () => {
  const convert = (out: string) => ['convert', TINY, out, '--group-size', '16', '--latent-size', '64'];

  it('progress is a bar, on one that cannot move its cursor lines', async () => {
    expect(await onTerminal(80, { TERM: 'xterm' }, ...convert('bar'))).toMatch(ESCAPES);
    const dumb = await onTerminal(80, { TERM: 'dumb' }, ...convert('lines'));
    expect(dumb).not.toMatch(ESCAPES);
    expect(dumb).toMatch(/^converting: 100% /m);
  });

  it('the bar of a second stage begins anew', async () => {
    const args = ['--target-ratio', '0.3', '--calibrate', TEXT, '--calibrate-tokens', '4096'];
    const shown = await onTerminal(80, { TERM: 'xterm' }, 'convert', TINY, 'calibrated', ...args);
    expect(shown).toMatch(/\b100%[^%]*choosing latent sizes/);
    expect(shown).toMatch(/\b\d\d?%[^%]*layer [23] group/);
  });

  it('the table of a comparison fits 80 columns, and says all where there are more', async () => {
    const args = ['--text', TEXT, '--target-ratio', '0.3', '--methods', 'stacked-svd,q8', '--window', '64'];
    const compared = (columns: number) => onTerminal(columns, { TERM: 'dumb' }, 'compare', TINY, ...args);
    const narrow = (await compared(80)).split('\n');
    expect(Math.max(...narrow.map((line) => [...line].length))).toBeLessThanOrEqual(80);
    expect(narrow[0]).toMatch(/^method .* above dense +bytes +FLOPs +time$/);
    expect(narrow.find((line) => line.startsWith('q8'))).toMatch(/% +0\.53× +1\.00× +\d/);
    expect(await compared(120)).toMatch(/^q8 .* MB \(0\.53×\)/m);
  });

  it('text keeps to its columns, however few', async () => {
    const planned = await onTerminal(30, { TERM: 'dumb' }, 'plan', TINY, '--target-ratio', '0.3');
    const [above = '', , below = ''] = planned.split('\n\n');
    const lines = [above, below].flatMap((text) => text.split('\n'));
    expect(lines.length).toBeGreaterThan(8);
    for (const line of lines) expect([...line].length, line).toBeLessThanOrEqual(30);
  });
});

it.each([80, 50, 30])('help keeps to %i columns, but for names and command lines', (width) => {
  const helps = [generalHelp(COMMANDS, '0.1.0', width), ...COMMANDS.map((one) => commandHelp(one, width))];
  for (const line of helps.join('\n').split('\n')) {
    if (/^(Usage: | {2}(molae |-|[a-z-]+ <))/.test(line)) continue;
    expect(line.length, line).toBeLessThanOrEqual(width);
  }
});

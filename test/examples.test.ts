import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type Browser, chromium } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ROOT, runNode } from './cli/support.ts';
import { deadline } from './support/deadline.ts';
import { TINY } from './support/fixtures.ts';

const BROWSER = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync);
const scratch = await mkdtemp(join(tmpdir(), 'molae-examples-'));
const latent = join(scratch, 'latent');

beforeAll(async () => {
  const { status, stderr } = await runNode(
    [join(ROOT, 'dist/cli/main.js'), 'convert', TINY, latent, '--group-size', '4', '--latent-size', '64'],
    scratch,
  );
  expect(status, stderr).toBe(0);
});
afterAll(() => rm(scratch, { recursive: true }));

/** Starts an example that listens; resolves with the address that it prints. */
async function listen(...args: string[]): Promise<{ url: string; child: ChildProcess }> {
  const child = spawn(process.execPath, [...args, '--port', '0'], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [url] = await new Promise<string[]>((resolve, reject) => {
    createInterface(child.stdout).once('line', (line) => resolve([line]));
    child.once('exit', (status) => reject(new Error(`ended with ${status}`)));
  });
  return { url: url as string, child };
}

/** Stops it as Ctrl-C does; it must end by itself. */
async function interrupt(child: ChildProcess): Promise<number | null> {
  child.kill('SIGINT');
  return child.exitCode ?? (await new Promise((resolve) => child.once('exit', resolve)));
}

describe('examples/server.mjs', () => {
  let url: string;
  let child: ChildProcess;
  beforeAll(async () => {
    ({ url, child } = await listen(join(ROOT, 'examples/server.mjs'), latent));
  });
  afterAll(async () => {
    expect(await interrupt(child)).toBe(0);
  });

  const post = (body: unknown, signal?: AbortSignal) =>
    fetch(url, { method: 'POST', body: JSON.stringify(body), ...(signal && { signal }) });
  const events = (text: string) =>
    text.split('\n\n').flatMap((event) => (event ? [JSON.parse(event.replace('data: ', ''))] : []));

  it('streams, piece by piece, the text that the command line writes', async () => {
    const chunks: string[] = [];
    const response = await post({ prompt: 'The old man', maxTokens: 12 });
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>)
      chunks.push(Buffer.from(chunk).toString());
    const received = events(chunks.join(''));
    const cli = await runNode(
      [
        join(ROOT, 'dist/cli/main.js'),
        'generate',
        latent,
        '--prompt',
        'The old man',
        '--max-tokens',
        '12',
        '--json',
      ],
      scratch,
    );
    expect(received.at(-1)).toEqual({ done: true, tokens: 12, finishReason: 'maxTokens' });
    expect(received.map(({ text = '' }) => text).join('')).toBe(JSON.parse(cli.stdout).text);
    expect(chunks.length).toBeGreaterThan(3);
  });

  it('answers several readers, says what is wrong, and survives one that leaves', async () => {
    const leaving = new AbortController();
    const left = post({ prompt: 'a', maxTokens: 200 }, leaving.signal).then(
      () => leaving.abort(),
      () => {},
    );
    const answers = await Promise.all(
      ['The sea', 'A whale'].map(async (prompt) =>
        events(await (await post({ prompt, maxTokens: 4 })).text()),
      ),
    );
    await left;
    for (const answer of answers) expect(answer.at(-1)).toMatchObject({ done: true, tokens: 4 });
    for (const body of [{}, 3, { prompt: '' }, { prompt: 'a', maxTokens: -1 }])
      expect((await post(body)).status, JSON.stringify(body)).toBe(400);
    expect((await fetch(new URL('/health', url))).status).toBe(200);
    expect((await fetch(new URL('/other', url))).status).toBe(404);
  });
});

describe('examples/convert-all.mjs', () => {
  it('converts what it can, says what it cannot, and leaves alone what is there', async () => {
    const models = join(scratch, 'models');
    await mkdir(join(models, 'empty'), { recursive: true });
    await symlink(TINY, join(models, 'tiny'));
    await writeFile(join(models, 'notes.txt'), 'no checkpoint');
    await mkdir(join(models, '.cache'));
    const run = () =>
      runNode(
        [join(ROOT, 'examples/convert-all.mjs'), models, join(scratch, 'converted'), '--target-ratio', '0.2'],
        ROOT,
      );
    const first = await run();
    expect(first.status).toBe(1);
    expect(first.stderr).toMatch(/^empty: .*config\.json/m);
    expect(first.stdout).toMatch(/'tiny' *│ 'converted'/);
    expect(first.stdout).not.toMatch(/notes|cache/);
    const config = JSON.parse(await readFile(join(scratch, 'converted/tiny/config.json'), 'utf8'));
    expect(config.model_type).toBe('molae');
    await rm(join(models, 'empty'), { recursive: true });
    const second = await run();
    expect(second.status).toBe(0);
    expect(second.stdout).toMatch(/'tiny' *│ 'there already'/);
  });
});

it.each<[string, string[], number, string]>([
  ['server.mjs', [], 2, 'Expected one checkpoint'],
  ['server.mjs', ['nowhere'], 1, 'nowhere/config.json'],
  ['server.mjs', [TINY, '--port', 'x'], 2, 'a port for --port'],
  ['server.mjs', [TINY, '--bogus'], 2, "Unknown option '--bogus'"],
  ['server.mjs', [TINY, '--device', 'gpu'], 1, 'received "gpu"'],
  ['routing-explorer/server.mjs', ['nowhere'], 1, 'nowhere/config.json'],
  ['convert-all.mjs', ['nowhere', 'out'], 1, 'Cannot read nowhere'],
  ['convert-all.mjs', [TINY, 'out'], 1, 'no folders'],
  ['convert-all.mjs', [TINY, 'out', '--target-ratio', '30'], 2, 'between 0 and 1'],
])(
  'examples/%s %j tells in words, without a stack, what a user can mend',
  async (name, args, status, words) => {
    const result = await runNode([join(ROOT, 'examples', name), ...args], ROOT);
    expect(result).toMatchObject({ status, stdout: '', stderr: expect.stringContaining(words) });
    expect(result.stderr).not.toMatch(/^ {4}at /m);
  },
);

describe.skipIf(BROWSER === undefined)(
  `examples/routing-explorer${BROWSER ? '' : ' (skipped: no chromium; apt-get install chromium)'}`,
  () => {
    let browser: Browser;
    const children: ChildProcess[] = [];
    beforeAll(async () => {
      // scripts/sanitize.sh has a library loaded into every process: this one cannot stand it.
      const { LD_PRELOAD: _, ...env } = process.env;
      browser = await chromium.launch({
        executablePath: BROWSER as string,
        args: ['--no-sandbox'],
        env: env as Record<string, string>,
      });
    }, deadline(60));
    afterAll(async () => {
      await browser?.close();
      for (const child of children) expect(await interrupt(child)).toBe(0);
    });

    async function openPage(checkpoint: string) {
      const { url, child } = await listen(join(ROOT, 'examples/routing-explorer/server.mjs'), checkpoint);
      children.push(child);
      const page = await browser.newPage({ viewport: { width: 1400, height: 1150 } });
      const problems: string[] = [];
      page.on('pageerror', (error) => problems.push(error.message));
      page.on('console', (message) => message.type() === 'error' && problems.push(message.text()));
      await page.goto(url);
      await page.waitForSelector('.layer');
      return { page, problems, url };
    }

    it(
      'draws topK experts for every token of every layer, as the server routed them',
      async () => {
        const { page, problems, url } = await openPage(TINY);
        const text = 'Call me Ishmael. The whale swam.';
        await page.fill('textarea', text);
        await page.click('button');
        await page.waitForFunction(
          `document.getElementById('tokens').textContent === ${JSON.stringify(text)}`,
        );
        const response = await fetch(new URL('/explore', url), { method: 'POST', body: text });
        const answer = (await response.json()) as {
          tokens: string[];
          topK: number;
          layers: { experts: number[][] }[];
        };
        expect(answer.tokens.join('')).toBe(text);
        const drawn = await page.$$eval('.layer', (panels) =>
          panels.map((panel) =>
            [...panel.querySelectorAll('.cell')].map((cell) => [
              Number(cell.getAttribute('data-token')),
              Number(cell.getAttribute('data-expert')),
            ]),
          ),
        );
        expect(drawn).toEqual(
          answer.layers.map(({ experts }) => experts.flatMap((row, t) => row.map((expert) => [t, expert]))),
        );
        expect(drawn[0]?.length).toBe(answer.tokens.length * answer.topK);
        expect(problems).toEqual([]);
        if (process.env.MOLAE_SCREENSHOT)
          await page.screenshot({ path: process.env.MOLAE_SCREENSHOT, fullPage: true });
      },
      deadline(60),
    );

    it(
      'follows a token that is pointed at, and shades the tokens of an expert that is clicked',
      async () => {
        const { page, problems } = await openPage(latent);
        await page.hover('#tokens span:nth-child(3)');
        const hint = await page.textContent('#hint');
        expect(hint).toMatch(/goes to layer 0: \d+ \(0\.\d\d\)/);
        expect(
          await page.$$eval('.column', (all) => all.map((one) => one.getAttribute('visibility'))),
        ).toEqual(Array(4).fill('visible'));
        const expert = await page.$eval('.layer .cell', (cell) => Number(cell.getAttribute('data-expert')));
        await page
          .locator('.layer')
          .first()
          .locator(`.bar[data-expert="${expert}"]`)
          .click({ position: { x: 1, y: 3 } });
        const shaded = await page.$$eval('#tokens span', (spans) =>
          spans
            .filter((span) => /background/.test(span.getAttribute('style') ?? ''))
            .map((span) => span.textContent),
        );
        const cells = await page.$$eval(
          '.layer:first-child .cell',
          (all, wanted) => all.filter((cell) => Number(cell.getAttribute('data-expert')) === wanted).length,
          expert,
        );
        expect(shaded.length).toBe(cells);
        expect(await page.$$eval('.layer:first-child .group', (lines) => lines.length)).toBe(3);
        expect(problems).toEqual([]);
        if (process.env.MOLAE_SCREENSHOT)
          await page.screenshot({
            path: process.env.MOLAE_SCREENSHOT.replace('.png', '-latent.png'),
            fullPage: true,
          });
      },
      deadline(60),
    );

    it(
      'says what is wrong with a text that has no tokens',
      async () => {
        const { page } = await openPage(TINY);
        await page.fill('textarea', '');
        await page.click('button');
        await page.waitForSelector('#problem:not([hidden])');
        expect(await page.textContent('#problem')).toMatch(/at least two tokens/);
      },
      deadline(60),
    );
  },
);

import { once } from 'node:events';
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { text as readAll } from 'node:stream/consumers';
import { describe, expect, it } from 'vitest';
import { copyWithConfig } from '../support/changed-config.ts';
import { copyDamaged } from '../support/damaged.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { builtCli } from './support.ts';

const cli = builtCli();
const text = join(cli.scratch, 'text.txt');
await writeFile(
  text,
  'It was the best of times, it was the worst of times, it was the age of wisdom. '.repeat(30),
);

/** A copy of the test model with another context. */
async function withContext(contextLength: number): Promise<string> {
  const path = join(cli.scratch, `context-${contextLength}`);
  await copyWithConfig(TINY, path, { max_position_embeddings: contextLength });
  return path;
}

describe('eval', () => {
  it('reports perplexity, predictions, window and speed as one JSON object', async () => {
    const { stdout, status } = await cli.run('eval', TINY, '--text', text, '--window', '64', '--json');
    expect(status).toBe(0);
    const result = JSON.parse(stdout);
    expect(result).toMatchObject({
      window: 64,
      parameters: expect.any(Number),
      tokensPerSecond: expect.any(Number),
    });
    expect(result.perplexity).toBeGreaterThan(1);
    expect(result.tokens).toBeGreaterThan(400);
  });

  it('puts two checkpoints side by side, with the divergence of their predictions', async () => {
    const out = join(cli.scratch, 'latent');
    expect((await cli.run('convert', TINY, out, '--group-size', '4', '--latent-size', '128')).status).toBe(0);
    const { stdout } = await cli.run(
      'eval',
      TINY,
      '--compare',
      out,
      '--text',
      text,
      '--max-tokens',
      '300',
      '--json',
    );
    const result = JSON.parse(stdout);
    expect(result.compare.parameters).toBeLessThan(result.parameters);
    expect(result.compare.perplexity).not.toBe(result.perplexity);
    expect(result.compare.klDivergence).toBeGreaterThan(0);
    expect(result.compare.topOneAgreement).toBeLessThanOrEqual(1);
    const table = await cli.run(
      'eval',
      TINY,
      '--compare',
      out,
      '--text',
      text,
      '--max-tokens',
      '300',
      '--stream',
    );
    for (const word of ['Perplexity', 'Parameters', 'ratio', 'KL divergence'])
      expect(table.stdout).toContain(word);
  });

  it('rounds the second of two checkpoints only: the first is what it is held against', async () => {
    const short = ['--text', text, '--max-tokens', '200', '--json'];
    const exact = JSON.parse((await cli.run('eval', TINY, ...short)).stdout);
    const both = await cli.run('eval', TINY, '--compare', TINY, '--quantize', 'q4', ...short);
    const { compare, ...first } = JSON.parse(both.stdout);
    expect(first.perplexity).toBe(exact.perplexity);
    expect(compare.perplexity).not.toBe(exact.perplexity);
    expect(compare.klDivergence).toBeGreaterThan(0);
  });

  it.each<[string, string[], number, string]>([
    ['no text', [], 2, '--text <file>'],
    ['a text that is not there', ['--text', 'nowhere.txt'], 1, 'nowhere.txt'],
    ['a text of one token', ['--text', text, '--max-tokens', '1'], 2, 'at least two tokens for --text'],
    ['a window beyond the context', ['--text', text, '--window', '300'], 2, '2 to 256'],
  ])('%s is told apart, with nothing on stdout', async (_, args, status, words) => {
    const result = await cli.run('eval', TINY, ...args);
    expect(result).toMatchObject({ status, stdout: '' });
    expect(result.stderr).toContain(words);
  });

  it('refuses models of other vocabularies before it evaluates any, and names both', async () => {
    const other = fixture('families/olmoe');
    const { status, stdout, stderr } = await cli.run('eval', TINY, '--compare', other, '--text', text);
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    // No line of progress before it.
    expect(stderr).toBe(
      `molae: ${TINY} has a vocabulary of 4096 tokens, ${other} one of 64: their predictions cannot be compared\n`,
    );
  });

  it('takes a window for both that fits both: the shorter context, or what is given, refused before any work', async () => {
    const short = await withContext(100);
    const both = (...more: string[]) =>
      cli.run('eval', TINY, '--compare', short, '--text', text, '--max-tokens', '250', ...more);
    const { compare, ...first } = JSON.parse((await both('--json')).stdout);
    expect([first.window, compare.window]).toEqual([100, 100]);
    expect(compare).toMatchObject({ perplexity: first.perplexity, klDivergence: 0 });
    const { status, stdout, stderr } = await both('--window', '200');
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(/^molae: Expected an integer from 2 to 100 .* for --window but received 200\n/);
  });

  it('says of a model whose context is one token that there is nothing to predict', async () => {
    const { status, stderr } = await cli.run('eval', await withContext(1), '--text', text);
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr: expect.stringMatching(/^molae: The model's context is a single token: there is no other/),
    });
  });

  it('a text that is not UTF-8 is refused', async () => {
    const file = join(cli.scratch, 'latin1.txt');
    await writeFile(file, Buffer.from([0x63, 0x61, 0x66, 0xe9]));
    expect(await cli.run('eval', TINY, '--text', file)).toMatchObject({
      status: 1,
      stderr: expect.stringContaining('not UTF-8'),
    });
  });
});

describe('generate', () => {
  it('continues a prompt, the same way for the same seed', async () => {
    const run = (seed: string) =>
      cli.run(
        'generate',
        TINY,
        '--prompt',
        'The sea',
        '--max-tokens',
        '8',
        '--temperature',
        '1',
        '--seed',
        seed,
        '--json',
      );
    const [first, again, other] = [await run('1'), await run('1'), await run('2')];
    const { text: continuation, tokens, tokensPerSecond } = JSON.parse(first.stdout);
    expect(tokens).toBeLessThanOrEqual(8);
    expect(tokensPerSecond).toBeGreaterThan(0);
    expect(JSON.parse(again.stdout).text).toBe(continuation);
    expect(JSON.parse(other.stdout).text).not.toBe(continuation);
  });

  it('says why the text ends, on stderr for people and in the JSON', async () => {
    const start = ['generate', TINY, '--prompt', 'The sea'];
    const short = await cli.run(...start, '--max-tokens', '4');
    expect(short.stderr).toMatch(/^4 tokens, \d+\.\d per second: stopped at --max-tokens 4\n$/);
    const long = await cli.run(...start, '--max-tokens', '400');
    expect(long.stderr).toContain('stopped where the context of 256 tokens is full');
    const { text: same, finishReason } = JSON.parse(
      (await cli.run(...start, '--max-tokens', '4', '--json')).stdout,
    );
    expect(finishReason).toBe('maxTokens');
    expect(short.stdout).toBe(`The sea${same}\n`);
    expect(JSON.parse((await cli.run(...start, '--max-tokens', '400', '--json')).stdout).finishReason).toBe(
      'context',
    );
  });

  it('stops before a text, and says so', async () => {
    const start = ['generate', TINY, '--prompt', 'The sea', '--max-tokens', '30'];
    const { text } = JSON.parse((await cli.run(...start, '--json')).stdout) as { text: string };
    // A word or two within the text, as a rule more than a token.
    const stop = text.slice(20, 26);
    const before = text.slice(0, text.indexOf(stop));
    const people = await cli.run(...start, '--stop', stop);
    expect(people.stdout).toBe(`The sea${before}\n`);
    expect(people.stderr).toContain(`stopped before ${JSON.stringify(stop)}`);
    expect(JSON.parse((await cli.run(...start, '--stop', stop, '--json')).stdout)).toMatchObject({
      text: before,
      finishReason: 'stop',
    });
    const several = ['--stop', 'no such text', `--stop=${stop}`, '--stop', text.slice(23)];
    expect(JSON.parse((await cli.run(...start, ...several, '--json')).stdout)).toMatchObject({
      text: before,
      finishReason: 'stop',
    });
    const never = JSON.parse((await cli.run(...start, '--stop', 'no such text', '--json')).stdout);
    expect(never).toMatchObject({ text, finishReason: 'maxTokens' });
  });

  it('stops where nobody reads on', async () => {
    const child = cli.start('generate', TINY, '--prompt', 'The sea', '--max-tokens', '200');
    let stderr = '';
    child.stderr?.on('data', (data) => {
      stderr += data;
    });
    child.stdout?.once('data', () => child.stdout?.destroy());
    expect(await once(child, 'close')).toEqual([0, null]);
    expect(stderr).toBe('');
  });

  it('takes a seed or a share alone for a wish to draw, at temperature 1', async () => {
    const text = async (...args: string[]) => {
      const run = await cli.run(
        'generate',
        TINY,
        '--prompt',
        'The sea',
        '--max-tokens',
        '12',
        '--json',
        ...args,
      );
      return JSON.parse(run.stdout).text as string;
    };
    const greedy = await text();
    expect(await text('--seed', '3')).toBe(await text('--seed', '3', '--temperature', '1'));
    expect(await text('--seed', '3')).not.toBe(greedy);
    expect(await text('--top-p', '0.95', '--seed', '3')).not.toBe(greedy);
    expect(await text('--top-k', '40', '--min-p', '0.01', '--seed', '3')).not.toBe(greedy);
    expect(await text('--top-k', '1', '--seed', '3')).toBe(greedy);
    expect(await text('--min-p', '1', '--seed', '3')).toBe(greedy);
    expect(await text('--temperature', '0', '--seed', '3')).toBe(greedy);
  });

  it('refuses a prompt that fills the context before it loads a weight', async () => {
    const bare = join(cli.scratch, 'bare');
    await mkdir(bare);
    for (const name of ['config.json', 'tokenizer.json', 'tokenizer_config.json'])
      await copyFile(join(TINY, name), join(bare, name));
    const long = 'It was the best of times. '.repeat(60);
    expect(await cli.run('generate', bare, '--prompt', long)).toMatchObject({
      status: 2,
      stdout: '',
      stderr: expect.stringContaining("Expected 1 to 255 tokens (the model's context less one) for --prompt"),
    });
    expect((await cli.run('generate', bare, '--prompt', 'It was')).status).toBe(1);
  });

  it('continues what comes on standard input, and says that there must be something', async () => {
    const generate = (input: string) => {
      const child = cli.start('generate', TINY, '--prompt', '-', '--max-tokens', '3', '--json');
      child.stdin?.end(input);
      return child;
    };
    const { text: piped, prompt } = JSON.parse(await readAll(generate('Call me').stdout as Readable));
    const given = await cli.run('generate', TINY, '--prompt', 'Call me', '--max-tokens', '3', '--json');
    expect({ piped, prompt }).toEqual({ piped: JSON.parse(given.stdout).text, prompt: 'Call me' });
    expect(await readAll(generate('').stderr as Readable)).toContain('nothing in --prompt');
  });

  it('the checkpoint that computes NaN is told by its path', async () => {
    const damaged = join(cli.scratch, 'damaged');
    await copyDamaged(TINY, damaged, 'model.norm.weight', 3, 0x7fc0);
    const wanted = { status: 1, stderr: expect.stringContaining(`${damaged}: `) };
    expect(await cli.run('generate', damaged, '--prompt', 'hi')).toMatchObject(wanted);
    const args = ['--compare', damaged, '--text', text, '--max-tokens', '64'];
    expect(await cli.run('eval', TINY, ...args)).toMatchObject(wanted);
  });

  it.each<[string, string[], number, string]>([
    ['half a seed', ['--prompt', 'hi', '--seed', '1.5'], 2, 'an integer from 0 on for --seed'],
    ['no prompt', [], 2, '--prompt <text>'],
    ['a chat without a template', ['--prompt', 'hi', '--chat'], 1, 'no chat template'],
    ['a share above 1', ['--prompt', 'hi', '--top-p', '2'], 2, 'above 0, at most 1 for --top-p'],
    ['no token to draw from', ['--prompt', 'hi', '--top-k', '0'], 2, 'a positive integer for --top-k'],
    ['a least share above 1', ['--prompt', 'hi', '--min-p', '2'], 2, 'a number from 0 to 1 for --min-p'],
    ['a share of 0', ['--prompt', 'hi', '--top-p', '0'], 2, 'above 0, at most 1 for --top-p'],
  ])('%s is told apart', async (_, args, status, words) => {
    expect(await cli.run('generate', TINY, ...args)).toMatchObject({
      status,
      stdout: '',
      stderr: expect.stringContaining(words),
    });
  });
});

it('the README shows both commands', async () => {
  const readme = await readFile(new URL('../../README.md', import.meta.url), 'utf8');
  expect(readme).toContain('molae eval');
  expect(readme).toContain('molae generate');
});

describe('plan --text', () => {
  it('shows how far it is, on stderr', async () => {
    const { status, stderr } = await cli.run('plan', TINY, '--text', text);
    expect(status, stderr).toBe(0);
    expect(stderr).toMatch(/^measuring: 100% \(4 of 4\).*\n$/m);
  });

  it.each([
    ['no', '', 0],
    ['one', 'a', 1],
  ])('refuses a text of %s token: nothing was measured', async (_, content, tokens) => {
    const short = join(cli.scratch, 'short.txt');
    await writeFile(short, content);
    expect(await cli.run('plan', TINY, '--group-size', '4', '--text', short)).toMatchObject({
      status: 2,
      stdout: '',
      stderr: expect.stringContaining(
        `Expected at least two tokens for --text but received ${tokens} tokens`,
      ),
    });
  });

  it('takes the routing of a text for the costs of a token, and says how it differs from uniform', async () => {
    const plan = async (...args: string[]) =>
      JSON.parse(
        (await cli.run('plan', TINY, '--group-size', '4', '--latent-size', '96', '--json', ...args)).stdout,
      );
    const [uniform, measured] = [await plan(), await plan('--text', text)];
    const groups = measured.measuredRouting.groupProbabilities.reduce((a: number, b: number) => a + b, 0);
    expect(groups).toBeGreaterThan(1);
    expect(groups).toBeLessThan(4);
    expect(measured.flopsPerToken.latent).not.toBe(uniform.flopsPerToken.latent);
    expect(measured.expertParameters).toEqual(uniform.expertParameters);
    // 6r(n·E + m·K) over 4 layers, with the measured E.
    expect(measured.flopsPerToken.latent).toBeCloseTo(4 * 6 * 96 * (256 * groups + 96 * 4), 0);
  });
});

import { once } from 'node:events';
import { access, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { convertCheckpoint } from '../../lib/conversion/convert.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { builtCli, type Finished, ROOT } from './support.ts';

const cli = builtCli();

/** The one JSON object on stdout. */
function json({ stdout, status, stderr }: Finished): Record<string, unknown> {
  expect(status, stderr).toBe(0);
  const value: unknown = JSON.parse(stdout);
  expect(value).toBeTypeOf('object');
  return value as Record<string, unknown>;
}

async function readConfig(folder: string): Promise<Record<string, unknown>> {
  return JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'));
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

describe('help and version', () => {
  it('lists the commands on --help, and on stderr with exit 2 when nothing was asked', async () => {
    const asked = await cli.run('--help');
    expect(asked).toMatchObject({ status: 0, stderr: '' });
    for (const name of ['inspect', 'plan', 'convert', 'bench', 'doctor'])
      expect(asked.stdout).toContain(`  ${name}`);
    expect(await cli.run()).toEqual({ status: 2, stdout: '', stderr: asked.stdout });
    expect(await cli.run('help')).toEqual(asked);
  });

  it.each(['inspect', 'plan', 'convert', 'eval', 'compare', 'generate', 'bench', 'doctor'])(
    'explains %s in 80 columns, with examples',
    async (name) => {
      const help = await cli.run(name, '--help');
      expect(help).toMatchObject({ status: 0, stderr: '' });
      expect(help.stdout).toContain(`Usage: molae ${name}`);
      expect(help.stdout).toContain('Examples:');
      expect(Math.max(...help.stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(80);
      expect(await cli.run('help', name)).toEqual(help);
      expect(await cli.run(name, '-h')).toEqual(help);
    },
  );

  it('tells the version of package.json', async () => {
    const { version } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'));
    expect(await cli.run('--version')).toEqual({ status: 0, stdout: `${version}\n`, stderr: '' });
  });
});

describe('wrong usage', () => {
  const out = join(cli.scratch, 'never');
  it.each<[problem: string, args: string[], words: string]>([
    ['unknown command', ['convrt', TINY, out], 'did you mean convert?'],
    ['option without a command', ['--json'], 'no command'],
    ['unknown option', ['plan', TINY, '--groupsize', '4'], 'did you mean --group-size?'],
    ['camel case', ['plan', TINY, '--groupSize', '4'], 'unknown option --groupSize'],
    [
      'negated switch',
      ['convert', TINY, out, '--target-ratio', '0.2', '--no-force'],
      'unknown option --no-force',
    ],
    ['bundled letters', ['plan', TINY, '-json'], 'unknown option -json'],
    ['dotted option', ['plan', TINY, '--json.a', '1'], 'unknown option --json.a'],
    ['missing argument', ['convert', TINY], 'convert needs <out>'],
    ['empty argument', ['inspect', ''], '<checkpoint> is empty'],
    ['surplus argument', ['inspect', TINY, 'x'], 'also received "x"'],
    ['surplus after a switch', ['inspect', TINY, '--json', 'true'], 'also received "true"'],
    ['switch with a value', ['inspect', TINY, '--json=false'], '--json takes no value'],
    ['option without a value', ['plan', TINY, '--latent-size'], '--latent-size needs a value'],
    ['value like an option', ['generate', TINY, '--prompt', '-hello'], '--prompt=-hello'],
    ['share given twice', ['compare', TINY, '--text', TINY, '--target-ratio', '0.3,0.3'], 'has 0.3 twice'],
    ['option with an empty value', ['plan', TINY, '--latent-size='], '--latent-size needs a value'],
    ['repeated option', ['plan', TINY, '--latent-size', '8', '--latent-size', '9'], 'given twice'],
    ['words for numbers', ['plan', TINY, '--latent-size', 'many'], 'a positive integer for --latent-size'],
    ['hexadecimal number', ['plan', TINY, '--latent-size', '0x10'], 'received "0x10"'],
    ['fraction', ['plan', TINY, '--latent-size', '4.5'], 'received "4.5"'],
    ['negative number', ['plan', TINY, '--latent-size', '-3'], 'received "-3"'],
    ['zero', ['plan', TINY, '--group-size', '0'], 'a positive integer for --group-size'],
    ['percent as ratio', ['plan', TINY, '--target-ratio', '25'], '0.25 for 25%'],
    ['conflict', ['plan', TINY, '--latent-size', '8', '--target-ratio', '0.2'], 'not both'],
    ['no size', ['convert', TINY, out], 'needs --latent-size <r> or --target-ratio <p>'],
    ['no divisor', ['plan', TINY, '--group-size', '5'], 'a divisor of the 16 experts'],
    ['too large', ['plan', TINY, '--latent-size', '257'], 'for --latent-size but received 257'],
    ['unknown operator', ['plan', TINY, '--operators', 'gate,router'], 'for --operators'],
    ['half a pair', ['plan', TINY, '--shared-gate-up', '--operators', 'gate'], '--shared-gate-up needs'],
    ['unknown device', ['plan', TINY, '--device', 'gpu'], 'for --device'],
    ['unknown solver', ['convert', TINY, out, '--latent-size', '8', '--solver', 'qr'], 'gram or svd'],
    ['unknown format', ['convert', TINY, out, '--latent-size', '8', '--format', 'gguf'], 'latent or dense'],
    ['method to come', ['convert', TINY, out, '--latent-size', '8', '--method', 'asvd'], 'stacked-svd'],
    [
      'calibration of a method that sees weights only',
      ['convert', TINY, out, '--latent-size', '8', '--calibrate', 'a.txt', '--method', 'stacked-svd'],
      'stacked-svd sees weights only',
    ],
    [
      'the calibrated method without a text',
      ['convert', TINY, out, '--latent-size', '8', '--method', 'calibrated'],
      'needs --calibrate <text>',
    ],
    [
      'an option of the other method',
      ['convert', TINY, out, '--latent-size', '8', '--calibrate', 'a.txt', '--solver', 'svd'],
      '--solver is for the method stacked-svd',
    ],
    [
      'a search without a text',
      ['convert', TINY, out, '--target-ratio', '0.3', '--search'],
      '--search is for the method calibrated',
    ],
    [
      'a search for one latent size',
      ['convert', TINY, out, '--latent-size', '8', '--calibrate', 'a.txt', '--search'],
      '--search needs --target-ratio',
    ],
    [
      'groups by affinity without a text',
      ['convert', TINY, out, '--target-ratio', '0.3', '--group-size', '4', '--grouping', 'affinity'],
      '--grouping affinity needs --calibrate <text>',
    ],
    [
      'an unknown grouping',
      ['convert', TINY, out, '--target-ratio', '0.3', '--calibrate', 'a.txt', '--grouping', 'kmeans'],
      'consecutive or affinity for --grouping',
    ],
    [
      'co-activation of groups that do not look at it',
      ['convert', TINY, out, '--target-ratio', '0.3', '--calibrate', 'a.txt', '--co-activation', '1'],
      '--co-activation needs --grouping affinity',
    ],
    [
      'co-activation above all',
      [
        ...['convert', TINY, out, '--target-ratio', '0.3', '--calibrate', 'a.txt'],
        ...['--grouping', 'affinity', '--co-activation', '1.5'],
      ],
      'a number from 0 to 1 for --co-activation',
    ],
  ])('%s: exit 2, one line and a pointer to the help, no result', async (_, args, words) => {
    const { status, stdout, stderr } = await cli.run(...args);
    expect(status).toBe(2);
    if (!args.includes('--json')) expect(stdout).toBe('');
    expect(stderr).toMatch(/^molae: [^\n]+\nSee: molae (\w+ )?--help\n$/);
    expect(stderr).toContain(words);
    expect(await exists(out)).toBe(false);
  });

  it('converts by a text: JSON has the contract, the sizes add up to the target, the text is accounted for', async () => {
    const text = join(ROOT, 'test/fixtures/moby-dick.txt');
    const { status, stdout, stderr } = await cli.run(
      'convert',
      TINY,
      out,
      '--target-ratio',
      '0.5',
      '--calibrate',
      text,
      '--json',
    );
    expect({ status, stderr }).toMatchObject({ status: 0 });
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ method: 'calibrated', calibration: { window: 256, unusedExperts: [] } });
    expect(report.expertParameters.after).toBeLessThanOrEqual(0.5 * report.expertParameters.before);
    expect(report.flopsPerToken.after).toBeGreaterThan(0);
    for (const row of report.layers) {
      expect(row).toMatchObject({
        norm: 'outputs',
        relativeError: expect.any(Number),
        exact: expect.any(Boolean),
      });
    }
    const missing = await cli.run(
      'convert',
      TINY,
      `${out}-2`,
      '--target-ratio',
      '0.5',
      '--calibrate',
      'no.txt',
    );
    expect(missing).toMatchObject({ status: 1, stdout: '' });
    expect(missing.stderr).toContain('no.txt');
    await rm(out, { recursive: true });
  });

  it('groups by affinity: reopened, the layers have groups of their own; the routing is in the report; no choice is refused', async () => {
    const grouping = [
      ...['--target-ratio', '0.5', '--calibrate', join(ROOT, 'test/fixtures/moby-dick.txt')],
      ...['--calibrate-tokens', '2048', '--grouping', 'affinity', '--co-activation', '0.5'],
    ];
    const alone = await cli.run('convert', TINY, out, ...grouping);
    expect(alone).toMatchObject({ status: 2, stdout: '' });
    expect(alone.stderr).toContain('grouping affinity has no effect with groups of 1');
    const shown = await cli.run('convert', TINY, out, ...grouping, '--group-size', '4');
    expect(shown).toMatchObject({ status: 0 });
    expect(shown.stdout).toMatch(/fire together\s+\(co-activation 0.5\)/);
    expect(shown.stdout).toMatch(/^ {2}all-to-all bytes per token/m);
    const report = json(
      await cli.run('convert', TINY, out, ...grouping, '--group-size', '4', '--force', '--json'),
    ) as {
      groupUse: { tokens: number; distinctGroups: Record<string, number>; flopsPerToken: { latent: number } };
      flopsPerToken: { after: number };
    };
    const { measured, consecutive } = report.groupUse.distinctGroups as Record<string, number>;
    expect(report.groupUse.tokens).toBe(2048);
    expect(measured).toBeLessThan(consecutive as number);
    expect(report.flopsPerToken.after).toBe(report.groupUse.flopsPerToken.latent);
    const words = `needs ${measured?.toFixed(2)} distinct groups; consecutive ones would be ${consecutive?.toFixed(2)}`;
    expect(shown.stdout.replaceAll('\n', ' ')).toContain(words);
    expect((await cli.run('inspect', out)).stdout).toMatch(
      /Experts per group \(k\) +4, not consecutive ones/,
    );
    const evaluated = json(
      await cli.run('eval', out, '--text', join(ROOT, 'test/fixtures/moby-dick.txt'), '--json'),
    ) as { perplexity: number };
    // That of the dense model is 110.9.
    expect(evaluated.perplexity).toBeGreaterThan(105);
    expect(evaluated.perplexity).toBeLessThan(115);
    await rm(out, { recursive: true });
  }, 120_000);

  it('samples the text in windows of the context where that is shorter than the usual window', async () => {
    const short = join(cli.scratch, 'short-context');
    await cp(TINY, short, { recursive: true });
    const config = JSON.parse(await readFile(join(TINY, 'config.json'), 'utf8'));
    await writeFile(join(short, 'config.json'), JSON.stringify({ ...config, max_position_embeddings: 64 }));
    const text = join(ROOT, 'test/fixtures/moby-dick.txt');
    // 17 windows of 64 tokens; of 256 they would be 4.
    const args = [
      '--latent-size',
      '32',
      '--group-size',
      '4',
      '--calibrate',
      text,
      '--calibrate-tokens',
      '1088',
    ];
    const report = json(await cli.run('convert', short, out, ...args, '--json')) as {
      calibration: { tokens: number; window: number };
    };
    expect(report.calibration).toMatchObject({ tokens: 17 * 64, window: 64 });
    await rm(out, { recursive: true });
  });

  it('searches for a form: a table for people, candidates in the JSON, and too little text is refused', async () => {
    const text = join(ROOT, 'test/fixtures/moby-dick.txt');
    const search = [
      '--target-ratio',
      '0.5',
      '--calibrate',
      text,
      '--search',
      '--group-size',
      '4',
      '--operators',
      'gate,up,down',
    ];
    const short = await cli.run('convert', TINY, out, ...search, '--calibrate-tokens', '2000');
    expect(short).toMatchObject({ status: 2, stdout: '' });
    expect(short.stderr).toContain('at least 32 windows of 256 tokens');
    expect(await exists(out)).toBe(false);
    const shown = await cli.run('convert', TINY, out, ...search, '--window', '64');
    expect(shown).toMatchObject({ status: 0 });
    expect(shown.stderr).toContain('Trying groups of 4, one B for gate and up\n');
    expect(shown.stdout).toMatch(/^Tried +perplexity +above best +FLOPs\/token +time/m);
    expect(shown.stdout.match(/^groups of 4.* chosen$/gm)).toHaveLength(1);
    const { search: found, flopsPerToken } = json(
      await cli.run('convert', TINY, out, ...search, '--window', '64', '--force', '--json'),
    ) as {
      search: { candidates: object[]; chosen: { flopsPerToken: number } };
      flopsPerToken: { after: number };
    };
    expect(found.candidates).toHaveLength(2);
    expect(found.candidates).toContainEqual(found.chosen);
    expect(flopsPerToken.after / found.chosen.flopsPerToken).toBeCloseTo(1, 1);
    await rm(out, { recursive: true });
  }, 180_000);

  it('takes options anywhere, and with an equals sign', async () => {
    const wanted = json(await cli.run('plan', TINY, '--group-size', '8', '--latent-size', '64', '--json'));
    const other = json(await cli.run('--json', '--latent-size=64', 'plan', '--group-size=8', '--', TINY));
    expect({ ...other, estimate: null }).toEqual({ ...wanted, estimate: null });
  });
});

it('too little text to calibrate with is told in words of the options', async () => {
  const text = ['--calibrate', join(ROOT, 'test/fixtures/moby-dick.txt'), '--calibrate-tokens', '5'];
  const { status, stderr } = await cli.run('convert', TINY, 'never', '--target-ratio', '0.3', ...text);
  expect(status).toBe(2);
  expect(stderr).toMatch(
    /^molae: Expected at least 1024 tokens for --calibrate and --calibrate-tokens but received 256 tokens\n/,
  );
});

describe('failures', () => {
  it('with --json are one object on stdout: the code, the message and the advice that stderr has', async () => {
    const missing = join(cli.scratch, 'no-such-folder');
    const { status, stdout, stderr } = await cli.run('inspect', missing, '--json');
    const { error } = JSON.parse(stdout) as { error: Record<string, string> };
    expect({ status, code: error.code }).toEqual({ status: 1, code: 'BAD_CHECKPOINT' });
    expect(error.message).toContain(missing);
    expect(stderr).toBe(`molae: ${error.message}\n${error.advice}\n`);

    const usage = await cli.run('plan', TINY, '--json', '--group-size', 'x');
    expect(usage.status).toBe(2);
    expect(JSON.parse(usage.stdout)).toEqual({
      error: {
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('for --group-size but received "x"'),
        advice: 'See: molae plan --help',
      },
    });
    expect((await cli.run('plan', TINY, '--group-size', 'x', '--', '--json')).stdout).toBe('');
  });

  it.each<[problem: string, args: string[], words: string]>([
    ['no such folder', ['inspect', 'missing'], 'missing/config.json'],
    ['no such folder to run', ['generate', 'missing', '--prompt', 'a'], 'missing/config.json'],
    ['numbers are names', ['inspect', '007'], '007/config.json'],
    ['control characters', ['inspect', 'a\u001b[2J\nb'], 'a\\x1b[2J\\x0ab'],
    ['a folder in the way', ['convert', TINY, ROOT, '--latent-size', '8'], 'must be separate'],
    ['not a checkpoint', ['plan', join(ROOT, 'lib')], 'config.json'],
  ])('%s: nothing on stdout', async (_, args, words) => {
    const { status, stdout, stderr } = await cli.run(...args);
    expect(stdout).toBe('');
    expect([1, 2]).toContain(status);
    expect(stderr).toMatch(/^molae: /);
    expect(stderr).toContain(words);
  });

  it('never falls back from a device that was asked for', async () => {
    const cuda = json(await cli.run('doctor', '--json')).backends as { name: string; available: boolean }[];
    if (cuda.find(({ name }) => name === 'cuda')?.available) return;
    const { status, stdout, stderr } = await cli.run('plan', TINY, '--device', 'cuda');
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toContain('molae doctor');
  });
});

describe('inspect', () => {
  it('has the fields of the contract', async () => {
    expect(json(await cli.run('inspect', TINY, '--json'))).toMatchObject({
      family: 'qwen2_moe',
      supported: true,
      hiddenSize: 256,
      intermediateSize: 96,
      numExperts: 16,
      topK: 4,
      moeLayers: [0, 1, 2, 3],
      expertParameters: 4 * 3 * 16 * 96 * 256,
    });
  });

  it('tells the same to people', async () => {
    const { status, stdout, stderr } = await cli.run('inspect', TINY);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/Routed experts +4\.7 M parameters/);
  });
});

describe('plan', () => {
  it('counts the eigenvectors of one basis less where gate and up share theirs, and whole weights for one token', async () => {
    const args = ['plan', TINY, '--group-size', '4', '--latent-size', '64', '--json'];
    const own = json(await cli.run(...args));
    const shared = json(await cli.run(...args, '--shared-gate-up'));
    const [n, r, layers, groups] = [256, 64, 4, 4];
    const flops = ({ estimate }: typeof own) => (estimate as { flops: number }).flops;
    expect(flops(own) - flops(shared)).toBeCloseTo(layers * groups * ((4 / 3) * n ** 3 + 4 * n * n * r), -1);
    const planned = own as unknown as { weightBytesPerToken: { dense: number } };
    expect(Number.isInteger(planned.weightBytesPerToken.dense)).toBe(true);
  });

  it('calls one expert an expert', async () => {
    const { stdout } = await cli.run('plan', TINY, '--group-size', '1', '--latent-size', '64');
    expect(stdout).toContain('4 MoE layers, 16 groups of 1 expert, latent size 64\n');
  });

  it('agrees with inspect, and with the formulas', async () => {
    const [k, r, n, m, N, K] = [4, 64, 256, 96, 16, 4];
    const inspected = json(await cli.run('inspect', TINY, '--json'));
    const planned = json(
      await cli.run('plan', TINY, '--group-size', `${k}`, '--latent-size', `${r}`, '--json'),
    );
    const expertParameters = { dense: 4 * 3 * N * m * n, latent: 4 * 3 * (N * m * r + (N / k) * r * n) };
    expect(planned).toMatchObject({ groupSize: k, latentSize: r, groupSizeChosen: false, expertParameters });
    expect(planned.expertParameters).toMatchObject({ dense: inspected.expertParameters });
    expect(planned.parameters).toMatchObject({
      dense: inspected.parameters,
      latent: (inspected.parameters as number) - expertParameters.dense + expertParameters.latent,
    });
    expect(planned.flopsPerToken).toMatchObject({ dense: 4 * 6 * K * m * n });
    for (const field of [
      'parameters',
      'expertParameters',
      'flopsPerToken',
      'weightBytesPerToken',
      'allToAllBytesPerToken',
    ]) {
      const { dense, latent, ratio } = planned[field] as Record<string, number>;
      expect(ratio, field).toBeCloseTo((latent as number) / (dense as number), 12);
    }
    expect(planned.estimate).toMatchObject({ seconds: expect.any(Number), device: expect.any(String) });
  });

  it.each(['dtype', 'torch_dtype'])(
    'of a config alone counts bytes of the %s that it names',
    async (field) => {
      const folder = await mkdtemp(join(tmpdir(), 'molae-config-'));
      onTestFinished(() => rm(folder, { recursive: true }));
      const { torch_dtype: _, ...config } = await readConfig(TINY);
      const bytesIn = async (dtype: string) => {
        await writeFile(join(folder, 'config.json'), JSON.stringify({ ...config, [field]: dtype }));
        const planned = json(
          await cli.run('plan', folder, '--group-size', '4', '--latent-size', '64', '--json'),
        );
        return (planned.weightBytesPerToken as { dense: number }).dense;
      };
      expect(await bytesIn('float32')).toBe(2 * (await bytesIn('bfloat16')));
    },
  );

  it('needs config.json alone, and then says what it does not know', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'molae-config-'));
    onTestFinished(() => rm(folder, { recursive: true }));
    await copyFile(join(TINY, 'config.json'), join(folder, 'config.json'));
    const sizes = ['--group-size', '4', '--latent-size', '64'];
    const whole = json(await cli.run('plan', TINY, ...sizes, '--json'));
    const planned = json(await cli.run('plan', folder, ...sizes, '--json'));
    const { checkpoint: _, estimate: _measured, parameters: _all, ...same } = whole;
    expect(planned).toMatchObject({ ...same, configOnly: true });
    expect(planned).not.toHaveProperty('parameters');
    const { stdout } = await cli.run('plan', folder, ...sizes);
    expect(stdout.replaceAll('\n', ' ')).toContain('There are no weights in the folder');
    expect(stdout).toMatch(/Parameters, whole model +not known/);
    const measured = await cli.run('plan', folder, ...sizes, '--text', join(TINY, 'config.json'));
    expect(measured).toMatchObject({ status: 1, stderr: expect.stringContaining('safetensors') });
    const text = await readFile(join(TINY, 'config.json'), 'utf8');
    await writeFile(join(folder, 'config.json'), text.replace('"qwen2_moe"', '"qwen2"'));
    const unknown = await cli.run('plan', folder, ...sizes);
    expect(unknown).toMatchObject({ status: 1, stderr: expect.stringContaining('model family "qwen2"') });
    expect(unknown.stderr).toContain(join(folder, 'config.json'));
  });

  it('says plainly what gets worse', async () => {
    const { stdout } = await cli.run('plan', TINY, '--group-size', '4', '--latent-size', '96');
    expect(stdout).toMatch(/FLOPs per token .* 1\.\d\d× {2}worse/);
    expect(stdout.replaceAll('\n', ' ')).toContain('The latent form is WORSE in FLOPs per token');
    expect(Math.max(...stdout.split('\n').map((line) => [...line].length))).toBeLessThanOrEqual(100);
  });
});

describe('convert', () => {
  it('reports as the contract says, with progress on stderr only', async () => {
    const out = join(cli.scratch, 'reported');
    const done = await cli.run('convert', TINY, out, '--target-ratio', '0.25', '--control', '--json');
    const report = json(done);
    const planned = json(await cli.run('plan', TINY, '--target-ratio', '0.25', '--json'));
    const { dense, latent } = planned.expertParameters as { dense: number; latent: number };
    expect(report).toMatchObject({
      expertParameters: { before: dense, after: latent },
      flopsPerToken: {
        before: (planned.flopsPerToken as { dense: number }).dense,
        after: (planned.flopsPerToken as { latent: number }).latent,
      },
      seconds: expect.any(Number),
      peakBytes: expect.any(Number),
    });
    const layers = report.layers as Record<string, unknown>[];
    expect(layers).toHaveLength(4 * 3 * (planned.numGroups as number));
    for (const layer of layers) {
      expect(layer).toMatchObject({
        layer: expect.any(Number),
        operator: expect.stringMatching(/^(gate|up|down)$/),
        group: expect.any(Number),
        latentSize: planned.latentSize,
        relativeError: expect.any(Number),
        optimalRelativeError: expect.any(Number),
        exact: false,
        controlRelativeError: expect.any(Number),
      });
    }
    expect(done.stderr).toMatch(
      /^(converting: \d+% \(\d+ of \d+\), layer \d gate group \d\n|converting: .*\n)+$/,
    );
    expect(done.stderr).toMatch(/converting: 100% \((\d+) of \1\)[^\n]*\n$/);
    expect(done.stderr.match(/100%/g)).toHaveLength(1);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: no escape sequences where there is no terminal
    expect(done.stderr).not.toMatch(/[\u001b\r]/);

    expect(json(await cli.run('inspect', out, '--json'))).toMatchObject({
      format: 'latent',
      expertParameters: latent,
    });
    const again = await cli.run('convert', TINY, out, '--target-ratio', '0.25');
    expect(again).toMatchObject({ status: 1, stdout: '' });
    expect(again.stderr).toContain('--force');
    const forced = await cli.run('convert', TINY, out, '--latent-size', '32', '--group-size', '8', '--force');
    expect(forced.status).toBe(0);
    expect(forced.stdout).toMatch(/Relative error +min +median +max +optimum +exact/);
    const converted = await cli.run('plan', out);
    expect(converted).toMatchObject({ status: 1, stdout: '' });
    expect(converted.stderr).toContain('converted already');
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)(
    'stops on %s with exit %i and no result, and goes on when asked again',
    async (signal, status) => {
      const out = join(cli.scratch, `stopped-${signal}`);
      const args = [
        'convert',
        TINY,
        out,
        '--group-size',
        '16',
        '--latent-size',
        '64',
        '--solver',
        'svd',
        '--json',
      ];
      const child = cli.start(...args);
      let stdout = '';
      let stderr = '';
      child.stdout?.on('data', (data) => {
        stdout += data;
      });
      child.stderr?.on('data', (data) => {
        if (stderr === '') child.kill(signal);
        stderr += data;
      });
      expect(await once(child, 'close')).toEqual([status, null]);
      expect(JSON.parse(stdout)).toMatchObject({
        error: { code: 'ABORTED', message: `stopped by ${signal}` },
      });
      expect(stderr).toContain(`molae: stopped by ${signal}`);
      expect(await exists(out)).toBe(false);
      const rest = await readdir(cli.scratch);
      expect(rest.filter((name) => name.includes(`stopped-${signal}`))).toEqual([
        `.stopped-${signal}.molae-partial`,
      ]);
      expect(stderr).toContain(`.stopped-${signal}.molae-partial`);
      expect(json(await cli.run(...args))).toMatchObject({ resumedFiles: expect.any(Number) });
      expect(await exists(join(cli.scratch, `.stopped-${signal}.molae-partial`))).toBe(false);
    },
  );
});

describe('a checkpoint with an option of its decoder that molae lacks', () => {
  const clipped = join(cli.scratch, 'clipped');
  beforeAll(async () => {
    await cp(fixture('families/olmoe'), clipped, { recursive: true });
    const config = await readConfig(clipped);
    await writeFile(join(clipped, 'config.json'), JSON.stringify({ ...config, clip_qkv: 8 }));
  });

  it('is supported, but does not run: inspect says why', async () => {
    const inspected = await cli.run('inspect', clipped, '--json');
    const cannotRun = expect.stringContaining('clip_qkv');
    expect(json(inspected)).toMatchObject({ supported: true, unsupported: [], runs: false, cannotRun });
    expect((await cli.run('inspect', clipped)).stdout).toMatch(/^Cannot run: .*clip_qkv/m);
  });

  it('converts by its weights, which runs no model; by a text it does not', async () => {
    const out = join(cli.scratch, 'of-clipped');
    const sizes = ['--group-size', '4', '--latent-size', '8'];
    const { status, stderr } = await cli.run('convert', clipped, out, ...sizes);
    expect({ status, stderr }).toMatchObject({ status: 0 });
    expect(await readConfig(out)).toMatchObject({ model_type: 'molae', clip_qkv: 8 });
    expect(
      await cli.run('convert', clipped, `${out}-2`, ...sizes, '--calibrate', join(clipped, 'config.json')),
    ).toMatchObject({ status: 1, stderr: expect.stringContaining('clip_qkv') });
  });
});

describe('what a failed conversion keeps', () => {
  const args = (out: string) => ['convert', TINY, out, '--group-size', '16', '--latent-size', '64'];
  const partial = (name: string) => join(cli.scratch, `.${name}.molae-partial`);

  it('is told where something is kept', async () => {
    const stop = new AbortController();
    const stopped = convertCheckpoint(TINY, join(cli.scratch, 'kept'), {
      ...{ groupSize: 16, latentSize: 64, signal: stop.signal },
      onProgress: ({ layer }) => layer === 2 && stop.abort(),
    });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
    const names = await readdir(partial('kept'));
    const finished = names.filter((name) => name.endsWith('.done'));
    expect(finished.length).toBeGreaterThan(1);
    const last = (finished[0] as string).replace(/-\d+-of-(\d+)\.safetensors.*/, '-$1-of-$1.safetensors');
    await rm(join(partial('kept'), 'result', last), { force: true });
    await mkdir(join(partial('kept'), 'result', last));
    const { status, stderr } = await cli.run(...args('kept'));
    expect(status).toBe(1);
    expect(stderr).toMatch(
      /^molae: Could not .*\n\d finished files are kept in .*\.kept\.molae-partial, and the same/m,
    );
  });

  it('is not where nothing is, or where the conversion had not begun', async () => {
    const nowhere = await cli.run(...args('/proc/out'));
    expect(nowhere).toMatchObject({ status: 1, stdout: '' });
    const unread = await cli.run(...args('kept'), '--calibrate', 'no.txt');
    expect(unread).toMatchObject({ status: 1, stderr: expect.stringContaining('no.txt') });
    for (const { stderr } of [nowhere, unread]) expect(stderr).not.toContain('kept in');
  });
});

it.skipIf(process.getuid?.() === 0)(
  'an output in a folder that cannot be written to is refused by its name',
  async () => {
    const locked = join(cli.scratch, 'locked');
    await mkdir(locked, { mode: 0o555 });
    const { status, stderr } = await cli.run('convert', TINY, join(locked, 'a/b'), '--target-ratio', '0.3');
    expect(status).toBe(1);
    expect(stderr).toMatch(/^molae: Could not write to .*locked: EACCES/);
  },
);

describe('doctor', () => {
  it('has the fields of the contract, and exit 0 with a backend missing', async () => {
    const found = json(await cli.run('doctor', '--json'));
    expect(found).toMatchObject({
      version: expect.any(String),
      platform: `${process.platform}-${process.arch}`,
      addon: { loaded: true, reason: null },
    });
    const [cpu, cuda] = found.backends as Record<string, unknown>[];
    expect(cpu).toMatchObject({ name: 'cpu', available: true, reason: null });
    expect(cuda).toMatchObject({ name: 'cuda', devices: expect.any(Array) });
    if (cuda?.available === false) expect(cuda.reason).toEqual(expect.any(String));
    expect(cuda?.found).toMatchObject({ libraries: expect.any(Array), tried: expect.any(Array) });
  });
});

describe('a machine without the addon', () => {
  const nowhere = { MOLAE_PREBUILD: join(cli.scratch, 'nowhere') };

  it('gets a diagnosis with exit 0, and can still inspect', async () => {
    const found = json(await cli.runWith(nowhere, 'doctor', '--json'));
    expect(found.addon).toMatchObject({
      loaded: false,
      path: null,
      reason: expect.stringContaining('npm run'),
    });
    expect(found.backends).toMatchObject([{ available: false }, { available: false }]);
    expect((await cli.runWith(nowhere, 'inspect', TINY)).status).toBe(0);
  });

  it('gets the way to mend it with exit 1', async () => {
    const { status, stdout, stderr } = await cli.runWith(nowhere, 'convert', TINY, 'x', '--latent-size', '8');
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(/^molae: The native addon .*\n.*\n.*npm run build:native.*\n$/);
  });
});

describe('a reader that goes away', () => {
  it('is no crash', async () => {
    const child = cli.start('inspect', TINY, '--json');
    child.stdout?.destroy();
    let stderr = '';
    child.stderr?.on('data', (data) => {
      stderr += data;
    });
    expect(await once(child, 'close')).toEqual([0, null]);
    expect(stderr).toBe('');
  });
});

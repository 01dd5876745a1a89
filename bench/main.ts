import { join } from 'node:path';
import { WrongResult } from '../lib/bench/check.ts';
import { EXIT } from '../lib/cli/failure.ts';
import { UsageError } from '../lib/cli/usage-error.ts';
import { type DeviceInfo, openDevice } from '../lib/device.ts';
import { MolaeError } from '../lib/errors.ts';
import { PACKAGE_ROOT, packageVersion } from '../lib/package.ts';
import { question as batchedGemm } from './batched-gemm.bench.ts';
import { question as calibrated } from './calibrated.bench.ts';
import { question as callOverhead } from './call-overhead.bench.ts';
import { question as convert } from './convert.bench.ts';
import { question as eigh } from './eigh.bench.ts';
import { question as evaluation } from './eval.bench.ts';
import { question as factorize } from './factorize.bench.ts';
import { question as gemm } from './gemm.bench.ts';
import { question as layerDecode } from './layer-decode.bench.ts';
import { question as layerPrefill } from './layer-prefill.bench.ts';
import { question as layerRounded } from './layer-rounded.bench.ts';
import { Context, type Question, type Row } from './support/context.ts';
import { Failure } from './support/failure.ts';
import { parseOptions, USAGE } from './support/options.ts';
import {
  absentPeers,
  compareResults,
  describeCeilings,
  formatTable,
  makeResults,
  type Results,
  readResults,
  resultsPath,
  writeResults,
} from './support/report.ts';
import { question as svd } from './svd.bench.ts';

const questions: readonly Question[] = [
  gemm,
  batchedGemm,
  svd,
  eigh,
  factorize,
  calibrated,
  layerPrefill,
  layerRounded,
  layerDecode,
  callOverhead,
  evaluation,
  convert,
];

async function main(args: readonly string[]): Promise<number> {
  const options = parseOptions(args);
  if (!options) {
    process.stdout.write(
      `${USAGE}\n\nQuestions:\n${questions.map((q) => `  ${q.name.padEnd(14)} ${q.asks}`).join('\n')}\n`,
    );
    return EXIT.done;
  }
  const asked = askedQuestions(options.only);
  using device = await openDevice('cpu', { threads: options.threads });
  const scratch = join(PACKAGE_ROOT, 'build', 'bench', 'results');
  const folder = options.out ?? (options.quick ? scratch : join(PACKAGE_ROOT, 'bench', 'results'));
  // Stored results stay what they are: a check would otherwise move its own mark.
  const stored = options.check ? storedResults(folder, device.info) : undefined;

  const context = new Context(device, options.quick, options.peers);
  const minutes = asked.reduce((sum, { minutes: m }) => sum + (options.quick ? m.quick : m.full), 0);
  process.stderr.write(`This takes about ${Math.ceil(minutes)} minutes on two quiet cores.\n`);
  const results = (rows: readonly Row[]) =>
    makeResults(packageVersion(), device.info, options.quick, context.measured, rows);
  const answered = new Set<string>();
  let written: readonly string[] = [];
  for (const question of asked) {
    if (!(await answer(question, context))) continue;
    answered.add(question.name);
    // After each of them: a run that is ended early leaves what it has answered. Half an answer replaces no whole one.
    const whole = context.rows.filter((row) => answered.has(row.question));
    if (!stored) written = writeResults(folder, results(whole));
  }

  let failed = answered.size < asked.length;
  if (context.rows.length === 0) return EXIT.failed;
  process.stdout.write(`\n${describeCeilings(results(context.rows))}\n`);
  const absent = absentPeers(context.rows);
  for (const line of absent) process.stdout.write(`absent: ${line}\n`);
  if (absent.length > 0) process.stdout.write('How to have them: bench/peers/README.md\n');
  for (const path of written) process.stdout.write(`wrote ${path}\n`);
  if (stored) failed = (await check(stored, asked, context)) || failed;
  return failed ? EXIT.failed : EXIT.done;
}

function askedQuestions(only: readonly string[]): readonly Question[] {
  const unknown = only.filter((name) => !questions.some((q) => q.name.startsWith(name)));
  if (unknown.length > 0) {
    const known = questions.map((q) => q.name).join(', ');
    throw new UsageError(`No such question: ${unknown.join(', ')}. There are ${known}`);
  }
  return only.length === 0
    ? questions
    : questions.filter((q) => only.some((name) => q.name.startsWith(name)));
}

/**
 * Whether ratios fell. Questions of which some did are asked once more, and what fell twice counts: others may have been
 * at work on the machine.
 */
async function check(stored: Results, asked: readonly Question[], context: Context): Promise<boolean> {
  const once = compareResults(stored, context.rows).fallen;
  for (const question of asked) {
    const falls = once.filter((fall) => fall.question === question.name).length;
    if (falls === 0) continue;
    process.stderr.write(`${falls} of the ratios of ${question.name} fell: asking again\n`);
    await answer(question, context);
  }
  const { compared, fallen } = compareResults(stored, context.rows);
  if (compared === 0) throw new Failure('None of these ratios is among the stored results');
  process.stdout.write(`${compared} ratios compared, ${once.length} fell, ${fallen.length} of them twice\n`);
  for (const { text } of fallen) process.stdout.write(`${text}\n`);
  return fallen.length > 0;
}

function storedResults(folder: string, info: DeviceInfo): Results {
  const path = resultsPath(folder, info);
  const stored = readResults(path);
  if (!stored) throw new Failure(`No stored results of this machine to check against: ${path} is missing`);
  return stored;
}

/** Whether it could be answered. */
async function answer(question: Question, context: Context): Promise<boolean> {
  process.stderr.write(`${question.name}: ${question.asks}\n`);
  context.begin(question.name);
  const first = context.rows.length;
  const began = performance.now();
  let answered = true;
  try {
    await question.run(context);
  } catch (error) {
    answered = false;
    process.stderr.write(`${question.name} failed: ${told(error) ?? (error as Error).stack ?? error}\n`);
  }
  const took = (performance.now() - began) / 60_000;
  process.stderr.write(`${question.name} took ${took.toFixed(1)} minutes\n`);
  process.stdout.write(`\n${question.name}: ${question.asks}\n${formatTable(context.rows.slice(first))}\n`);
  return answered;
}

/** The line that an error is told in, if it is one that may happen. */
function told(error: unknown): string | undefined {
  const expected = [UsageError, Failure, WrongResult, MolaeError].some((type) => error instanceof type);
  return expected ? (error as Error).message : undefined;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  const line = told(error);
  if (line === undefined) throw error;
  process.stderr.write(`bench: ${line}\n`);
  if (error instanceof UsageError) process.stderr.write('See: npm run bench -- --help\n');
  process.exitCode = error instanceof UsageError ? EXIT.usage : EXIT.failed;
}

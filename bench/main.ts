import { join } from 'node:path';
import { openDevice } from '../lib/device.ts';
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
import { Context, type Question } from './support/context.ts';
import { parseOptions, USAGE } from './support/options.ts';
import {
  absentPeers,
  compareResults,
  describeCeilings,
  formatTable,
  machineSlug,
  makeResults,
  readResults,
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
    return 0;
  }
  const unknown = options.only.filter((name) => !questions.some((q) => q.name.startsWith(name)));
  if (unknown.length > 0)
    throw new Error(
      `No such question: ${unknown.join(', ')}. There are ${questions.map((q) => q.name).join(', ')}`,
    );
  const asked = questions.filter(
    (q) => options.only.length === 0 || options.only.some((name) => q.name.startsWith(name)),
  );

  using device = await openDevice('cpu', { threads: options.threads });
  const context = new Context(device, options.quick, options.peers);
  const minutes = asked.reduce((sum, { minutes: m }) => sum + (options.quick ? m.quick : m.full), 0);
  process.stderr.write(`This takes about ${Math.ceil(minutes)} minutes on two quiet cores.\n`);
  let failed = false;
  for (const question of asked) {
    process.stderr.write(`${question.name}: ${question.asks}\n`);
    context.begin(question.name);
    const first = context.rows.length;
    const began = performance.now();
    try {
      await question.run(context);
    } catch (error) {
      failed = true;
      process.stderr.write(`${question.name} failed: ${error instanceof Error ? error.stack : error}\n`);
    }
    const took = (performance.now() - began) / 60_000;
    process.stderr.write(`${question.name} took ${took.toFixed(1)} minutes\n`);
    process.stdout.write(`\n${question.name}: ${question.asks}\n${formatTable(context.rows.slice(first))}\n`);
  }

  if (context.rows.length === 0) return 1;
  const results = makeResults(packageVersion(), device.info, options.quick, context.measured, context.rows);
  process.stdout.write(`\n${describeCeilings(results)}\n`);
  for (const line of absentPeers(context.rows)) process.stdout.write(`absent: ${line}\n`);

  const scratch = join(PACKAGE_ROOT, 'build', 'bench', 'results');
  const folder = options.out ?? (options.quick ? scratch : join(PACKAGE_ROOT, 'bench', 'results'));
  if (options.check) {
    // Stored results stay what they are: a check would otherwise move its own mark.
    const stored = readResults(join(folder, `${machineSlug(results)}.json`));
    if (!stored) throw new Error(`No stored results of this machine in ${folder} to check against`);
    const { compared, fallen } = compareResults(stored, context.rows);
    if (compared === 0) throw new Error(`None of these ratios is among the stored results in ${folder}`);
    process.stdout.write(`${compared} ratios compared, ${fallen.length} fell\n`);
    for (const line of fallen) process.stdout.write(`${line}\n`);
    return failed || fallen.length > 0 ? 1 : 0;
  }
  for (const path of writeResults(folder, results)) process.stdout.write(`wrote ${path}\n`);
  return failed ? 1 : 0;
}

process.exitCode = await main(process.argv.slice(2));

import { resolve } from 'node:path';
import { openDense } from '../conversion/source.ts';
import { openDevice } from '../device.ts';
import { MolaeError } from '../errors.ts';
import { type ComparisonRow, compareMethods } from '../methods/compare.ts';
import type { Method } from '../methods/method.ts';
import { METHODS } from '../methods/methods.ts';
import { expertCoverage } from '../model/coverage.ts';
import { Model } from '../model/model.ts';
import { defaultWindow, sampleWindows } from '../model/windows.ts';
import type { Arguments } from './arguments.ts';
import type { CommandDefinition } from './command.ts';
import { ComparisonFolder } from './comparison-folder.ts';
import {
  COLUMNS,
  type Comparison,
  cells,
  comparisonFiles,
  explanation,
  toJson,
} from './comparison-report.ts';
import { CALIBRATE_TOKENS_OPTION, TEXT_OPTION, WINDOW_OPTION } from './model-options.ts';
import { DEVICE_OPTION } from './option.ts';
import type { Output } from './output.ts';
import { withProgress } from './progress.ts';
import { type Alignment, table, wrap } from './table.ts';
import { openTokenizer, readTokens } from './text.ts';

/** Of the text, where none is given to evaluate on. */
const CALIBRATION_SHARE = 0.8;

export const compare: CommandDefinition = {
  name: 'compare',
  positionals: ['checkpoint'],
  summary: 'methods of compression side by side on held-out text',
  description: [
    "Compresses the routed experts with every method to every target, in memory, and measures the perplexity of each result beside that of the checkpoint as it is. Methods never look at the text that they are judged by: without --eval-text they may look at the first 80% of the text's tokens, and the rest judges.",
  ],
  glossary: { title: 'Methods', entries: METHODS.map(({ name, summary }) => [name, summary]) },
  options: [
    TEXT_OPTION,
    {
      name: 'eval-text',
      value: 'file',
      description: 'another text to judge by; then methods may use all of --text',
    },
    {
      name: 'target-ratio',
      value: 'p,…',
      description: "shares of the routed experts' parameters to remove, such as 0.25,0.5; required",
    },
    { name: 'methods', value: 'a,…', description: 'the methods (all)' },
    {
      name: 'group-size',
      value: 'k,…',
      description: 'for methods that group experts: how many share a latent space (chosen for each)',
    },
    {
      ...CALIBRATE_TOKENS_OPTION,
      description: 'tokens that methods may look at, from all over their part of the text (all of it)',
    },
    WINDOW_OPTION,
    { name: 'out', value: 'folder', description: 'write compare.json, compare.md and charts (SVG) there' },
    { name: 'force', description: 'replace an existing comparison there' },
    DEVICE_OPTION,
  ],
  examples: [
    [
      'compare ./OLMoE --text wiki.txt --target-ratio 0.25,0.5 --out ./compared',
      'which method for this model?',
    ],
    [
      'compare ./OLMoE --text a.txt --target-ratio 0.25 --group-size 1,8,64',
      'how many experts should share?',
    ],
  ],
  async run(args, output) {
    const path = args.positional(0);
    const request = readRequest(args);
    const calibrateTokens = args.positiveInteger('calibrate-tokens') ?? Number.POSITIVE_INFINITY;
    const texts = await readTexts(args, path);
    const checkpoint = await openDense(path);
    await checkpoint.close();
    const out = args.string('out');
    await using folder = out === undefined ? undefined : await ComparisonFolder.open(out, args.has('force'));
    using device = await openDevice(args.device());
    const comparison = await withProgress('comparing', async (signal, progress): Promise<Comparison> => {
      await using model = await Model.open(path, { device, signal });
      const { window = defaultWindow(model) } = request;
      checkLengths(texts, window);
      const { evaluation } = texts;
      const calibration = sampleWindows(texts.calibration, calibrateTokens, window);
      const rows: ComparisonRow[] = [];
      const printed = new PrintedTable(output, request.methods);
      for await (const row of compareMethods(model, {
        ...request,
        calibration,
        evaluation,
        window,
        signal,
        onProgress: ({ done, total, method }) => {
          if (output.json) progress.update(done, total, method);
        },
      })) {
        rows.push(row);
        printed.add(cells(row, rows[0] as ComparisonRow));
      }
      const coverage = await expertCoverage(model, calibration, { window, signal });
      const tokens = { calibration: calibration.length, evaluation: evaluation.length };
      return { checkpoint: path, window, tokens, coverage, rows };
    });
    await folder?.write(comparisonFiles(comparison));
    output.result(toJson(comparison), () => [
      '',
      ...explanation(comparison).flatMap((sentence) => wrap(sentence, output.width)),
      ...(out === undefined ? [] : [`Written to ${out}.`]),
    ]);
  },
};

function readRequest(args: Arguments) {
  const targetRatios = args.shares('target-ratio');
  if (args.has('force') && !args.has('out')) throw args.usage('--force needs --out <folder>');
  if (targetRatios === undefined) throw args.usage('compare needs --target-ratio <p,…>');
  const names = args.list(
    'methods',
    METHODS.map(({ name }) => name),
  );
  return {
    methods: METHODS.filter(({ name }) => names === undefined || names.includes(name)),
    targetRatios,
    groupSizes: args.positiveIntegers('group-size'),
    window: args.positiveInteger('window'),
  };
}

interface Texts {
  readonly calibration: readonly number[];
  readonly evaluation: readonly number[];
}

/** Tokens to look at and tokens to be judged by: never the same. */
async function readTexts(args: Arguments, checkpoint: string): Promise<Texts> {
  const file = args.string('text');
  const other = args.string('eval-text');
  if (file === undefined) throw args.usage('compare needs --text <file>');
  if (other !== undefined && resolve(other) === resolve(file)) {
    throw args.usage('--eval-text is the same file as --text: methods must not look at what judges them');
  }
  const tokenizer = await openTokenizer(checkpoint);
  const ids = await readTokens(file, tokenizer);
  if (other !== undefined) {
    return { calibration: ids, evaluation: await readTokens(other, tokenizer) };
  }
  const end = Math.floor(CALIBRATION_SHARE * ids.length);
  return { calibration: ids.slice(0, end), evaluation: ids.slice(end) };
}

function checkLengths({ calibration, evaluation }: Texts, window: number): void {
  if (Math.min(calibration.length, evaluation.length) >= window) return;
  throw new MolaeError(
    'INVALID_ARGUMENT',
    `Too little text: ${calibration.length} tokens to calibrate with and ${evaluation.length} to evaluate on, ` +
      `but a window of ${window} is the least for each`,
  );
}

/** What the widest cells of the columns but the first look like, for rows that are printed before the others are known. */
const WIDEST = [
  '9999',
  '100.0%',
  '99999.999',
  '9999.99%',
  '99.9 MB (0.99×)',
  '99.9 M (0.99×)',
  '59 min 59 s',
];
const ALIGNMENTS = COLUMNS.map((_, column): Alignment => (column === 0 ? 'left' : 'right'));

/** A table that is printed row by row; of bytes and FLOPs it has only the ratios where a terminal is too narrow for all. */
class PrintedTable {
  readonly #output: Output;
  /** Rows that are as wide as any. */
  readonly #widest: readonly (readonly string[])[];
  readonly #isBrief: boolean;
  #started = false;

  constructor(output: Output, methods: readonly Method[]) {
    const names = ['dense', ...methods.map(({ name }) => name)];
    const longest = names.reduce((a, b) => (b.length > a.length ? b : a));
    const widest = [COLUMNS, [longest, ...WIDEST]];
    const [header = ''] = table(widest, ALIGNMENTS);
    this.#output = output;
    this.#isBrief = header.length > (output.terminalWidth ?? Number.POSITIVE_INFINITY);
    this.#widest = this.#isBrief ? widest.map((row) => row.map(briefly)) : widest;
  }

  add(row: readonly string[]): void {
    if (!this.#started) this.#print(COLUMNS);
    this.#started = true;
    this.#print(row);
  }

  #print(row: readonly string[]): void {
    const shown = this.#isBrief ? row.map(briefly) : row;
    this.#output.line(table([...this.#widest, shown], ALIGNMENTS).at(-1) as string);
  }
}

/** `9.4 MB (0.53×)` → `0.53×`, and of the column's name no more than fits that. */
function briefly(cell: string): string {
  return cell.replace(/^.*\((.*)\)$/, '$1').replace('/token', '');
}

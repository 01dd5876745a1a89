import { ModelConfig } from '../checkpoint/config.ts';
import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import { describeDecoder } from '../checkpoint/families/index.ts';
import { openDevice } from '../device.ts';
import { BLOCK_DTYPES, type BlockDType } from '../dtype.ts';
import { MolaeError } from '../errors.ts';
import { checkVocabularies, compareModels, type ModelComparison } from '../model/compare.ts';
import { Model, type ModelOptions } from '../model/model.ts';
import { type Perplexity, type PerplexityOptions, perplexity } from '../model/perplexity.ts';
import { checkWindow, defaultWindow } from '../model/windows.ts';
import type { CommandDefinition } from './command.ts';
import { namingCheckpoint } from './failure.ts';
import { QUANTIZE_OPTION, STREAM_OPTION, TEXT_OPTION, WINDOW_OPTION } from './model-options.ts';
import { DEVICE_OPTION } from './option.ts';
import { withProgress } from './progress.ts';
import { bytes, count, counted, percent, table, times, wrap } from './table.ts';
import { openTokenizer, readTokens } from './text.ts';

interface Evaluation extends Perplexity {
  /** How its experts were rounded to be evaluated; `bytes` are those of the checkpoint as it is stored. */
  readonly quantize: BlockDType | undefined;
  readonly checkpoint: string;
  readonly parameters: number;
  readonly bytes: number;
}

export const evaluate: CommandDefinition = {
  name: 'eval',
  positionals: ['checkpoint'],
  summary: 'perplexity of a checkpoint on a text',
  description: [
    'Runs the whole model, dense or latent, on a text: non-overlapping windows, each predicting its own tokens from the second on. With --compare, a second checkpoint is evaluated beside it, and the divergence of the predictions is reported.',
  ],
  options: [
    TEXT_OPTION,
    WINDOW_OPTION,
    {
      name: 'compare',
      value: 'checkpoint',
      description: 'another checkpoint of the same vocabulary, such as the converted one',
    },
    { name: 'max-tokens', value: 'T', description: 'use the first T tokens of the text only' },
    STREAM_OPTION,
    {
      ...QUANTIZE_OPTION,
      description:
        'q8 or q4: round the routed experts to 8 or 4 bits as they are loaded, with --compare those of the other checkpoint (CPU)',
    },
    DEVICE_OPTION,
  ],
  examples: [
    ['eval ./Qwen1.5-MoE-A2.7B --text wiki.txt', 'how well does it predict this text?'],
    ['eval ./Qwen1.5-MoE-A2.7B --compare ./out --text wiki.txt', 'what did conversion cost?'],
    ['eval ./Qwen1.5-MoE-A2.7B --quantize q4 --text wiki.txt', 'what would plain quantization cost?'],
  ],
  async run(args, output) {
    const file = args.string('text');
    if (file === undefined) throw args.usage('eval needs --text <file>');
    const paths = [args.positional(0), args.string('compare')].filter((path) => path !== undefined);
    const tokenizer = await openTokenizer(args.positional(0));
    const ids = await readTokens(file, tokenizer, args.positiveInteger('max-tokens'));
    if (ids.length < 2) {
      throw new MolaeError(
        'INVALID_ARGUMENT',
        `Expected a text of at least two tokens for --text, each predicts the next, but received ${ids.length}`,
      );
    }
    const window = commonWindow(await Promise.all(paths.map(readDecoder)), args.positiveInteger('window'));
    using device = await openDevice(args.device());
    const options = {
      device,
      stream: args.has('stream'),
      quantize: args.oneOf('quantize', BLOCK_DTYPES),
      window,
    };
    const evaluated = await withProgress('evaluating', (signal, progress) =>
      evaluateAll(paths, ids, { ...options, signal }, (...at) => progress.update(...at)),
    );
    output.result(asJson(evaluated), () => describe(evaluated, output.width));
  },
};

/** What is known of a model before its weights are read. */
interface Decoder {
  readonly checkpoint: { readonly path: string };
  readonly spec: DecoderSpec;
}

async function readDecoder(path: string): Promise<Decoder> {
  return { checkpoint: { path }, spec: describeDecoder(await ModelConfig.read(path)) };
}

/**
 * The window of all models: their perplexities do not compare in others.
 *
 * @throws MolaeError for models that cannot be compared, and a window that does not fit them.
 */
function commonWindow(decoders: readonly Decoder[], wanted: number | undefined): number {
  const [first, second] = decoders;
  if (first && second) checkVocabularies(first, second);
  const window = wanted ?? Math.min(...decoders.map(defaultWindow));
  // The shortest context first: it is what a window does not fit.
  const byContext = [...decoders].sort((a, b) => a.spec.contextLength - b.spec.contextLength);
  for (const decoder of byContext) checkWindow(decoder, window);
  return window;
}

/** One model on a text, or two and how far their predictions are from each other. */
interface Result {
  readonly first: Evaluation;
  readonly second: Evaluation | undefined;
  readonly divergence: ModelComparison | undefined;
}

type Options = Pick<ModelOptions, 'device' | 'stream' | 'quantize'> &
  Pick<PerplexityOptions, 'window' | 'signal'>;

async function evaluateAll(
  paths: readonly string[],
  ids: ArrayLike<number>,
  { window, signal, quantize, ...options }: Options,
  update: (done: number, total: number, note: string) => void,
): Promise<Result> {
  const observed = (note: string): PerplexityOptions => ({
    window,
    signal,
    onProgress: ({ done, total }) => update(done, total, note),
  });
  const models: Model[] = [];
  try {
    for (const [i, path] of paths.entries()) {
      // Of two, the first is what the other is held against: as it is stored.
      const own = i === paths.length - 1 ? quantize : undefined;
      models.push(await Model.open(path, { ...options, quantize: own, signal }));
    }
    const rows: Evaluation[] = [];
    for (const model of models) {
      const note = models.length > 1 ? `model ${rows.length + 1}` : '';
      const own = model === models.at(-1) ? quantize : undefined;
      rows.push({ ...(await evaluateOne(model, ids, observed(note))), quantize: own });
    }
    const [first, second] = rows as [Evaluation, Evaluation?];
    const [reference, other] = models as [Model, Model?];
    const divergence = other && (await compareModels(reference, other, ids, observed('comparing')));
    return { first, second, divergence };
  } finally {
    for (const model of models) await model.close();
  }
}

async function evaluateOne(
  model: Model,
  ids: ArrayLike<number>,
  options: PerplexityOptions,
): Promise<Omit<Evaluation, 'quantize'>> {
  const { path, parameters, byteLength } = model.checkpoint;
  const measured = await namingCheckpoint(path, () => perplexity(model, ids, options));
  return { ...measured, checkpoint: path, parameters, bytes: byteLength };
}

function asJson({ first, second, divergence }: Result): object {
  if (!divergence) return first;
  const { klDivergence, topOneAgreement } = divergence;
  return { ...first, compare: { ...second, klDivergence, topOneAgreement } };
}

function named({ checkpoint, quantize }: Evaluation): string {
  return quantize === undefined ? checkpoint : `${checkpoint} in ${quantize}`;
}

function describe({ first, second, divergence }: Result, width: number): string[] {
  const row = (label: string, value: (e: Evaluation) => string, ratio?: (e: Evaluation) => number) => [
    label,
    value(first),
    ...(second ? [value(second), ratio ? times(ratio(second) / ratio(first)) : ''] : []),
  ];
  const lines = table(
    [
      ...(second ? [['', named(first), named(second), 'ratio']] : []),
      row(
        'Perplexity',
        (e) => e.perplexity.toFixed(3),
        (e) => e.perplexity,
      ),
      row(
        'Parameters',
        (e) => count(e.parameters),
        (e) => e.parameters,
      ),
      row(
        (second ?? first).quantize ? 'Bytes stored, not rounded' : 'Bytes stored',
        (e) => bytes(e.bytes),
        (e) => e.bytes,
      ),
      row(
        'Tokens per second',
        (e) => e.tokensPerSecond.toFixed(0),
        (e) => e.tokensPerSecond,
      ),
    ],
    ['left', 'right', 'right', 'right'],
  );
  const scored = `${counted(first.tokens, 'prediction')} in windows of ${first.window} tokens.`;
  if (!divergence) return [...lines, '', ...wrap(scored, width)];
  return [
    ...lines,
    '',
    ...wrap(
      `KL divergence ${divergence.klDivergence.toFixed(4)} nats, same first choice for ${percent(divergence.topOneAgreement)} of ${scored}`,
      width,
    ),
  ];
}

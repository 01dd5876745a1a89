import { openDevice } from '../device.ts';
import { compareModels } from '../model/compare.ts';
import { Model } from '../model/model.ts';
import { type Perplexity, perplexity } from '../model/perplexity.ts';
import { Tokenizer } from '../model/tokenizer.ts';
import { type CommandDefinition, DEVICE_OPTION } from './command.ts';
import { openProgress } from './progress.ts';
import { interruptible } from './signals.ts';
import { bytes, count, percent, table, times } from './table.ts';
import { readText } from './text.ts';

interface Evaluation extends Perplexity {
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
    { name: 'text', value: 'file', description: 'the text, in UTF-8' },
    {
      name: 'window',
      value: 'W',
      description: 'tokens of a window (256, or the context where that is shorter)',
    },
    { name: 'compare', value: 'checkpoint', description: 'another checkpoint, such as the converted one' },
    { name: 'max-tokens', value: 'T', description: 'use the first T tokens of the text only' },
    { name: 'stream', description: 'load one layer at a time, for models larger than memory' },
    {
      name: 'quantize',
      value: 'blocks',
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
    const paths = [
      args.positional(0),
      ...(args.string('compare') === undefined ? [] : [args.string('compare') as string]),
    ];
    const tokenizer = await Tokenizer.open(paths[0] as string);
    const ids = tokenizer.encode(await readText(file)).slice(0, args.positiveInteger('max-tokens'));
    using device = await openDevice(args.device());
    const progress = openProgress('evaluating');
    const options = { device, stream: args.has('stream') };
    const quantize = args.oneOf('quantize', ['q8', 'q4']);
    const models: Model[] = [];
    try {
      const result = await interruptible(
        async (signal) => {
          for (const [i, path] of paths.entries()) {
            const isLast = i === paths.length - 1;
            models.push(
              await Model.open(path, { ...options, quantize: isLast ? quantize : undefined, signal }),
            );
          }
          const window = args.positiveInteger('window');
          const report =
            (note: string) =>
            ({ done, total }: { done: number; total: number }) =>
              progress.update(done, total, note);
          const rows: Evaluation[] = [];
          for (const [i, model] of models.entries()) {
            const { parameters, byteLength } = model.checkpoint;
            const scores = await perplexity(model, ids, {
              window,
              signal,
              onProgress: report(models.length > 1 ? `model ${i + 1}` : ''),
            });
            rows.push({ ...scores, checkpoint: paths[i] as string, parameters, bytes: byteLength });
          }
          const [reference, other] = models;
          const divergence =
            reference && other
              ? await compareModels(reference, other, ids, {
                  window,
                  signal,
                  onProgress: report('comparing'),
                })
              : undefined;
          return { rows, divergence };
        },
        () => progress.stop(),
      );
      progress.stop();
      const [first, second] = result.rows as [Evaluation, Evaluation?];
      const { divergence } = result;
      output.result(
        second && divergence
          ? {
              ...first,
              compare: {
                ...second,
                klDivergence: divergence.klDivergence,
                topOneAgreement: divergence.topOneAgreement,
              },
            }
          : first,
        () => describe(first, second, divergence),
      );
    } finally {
      progress.stop();
      for (const model of models) await model.close();
    }
  },
};

function describe(
  first: Evaluation,
  second: Evaluation | undefined,
  divergence: { klDivergence: number; topOneAgreement: number } | undefined,
): string[] {
  const row = (label: string, value: (e: Evaluation) => string, ratio?: (e: Evaluation) => number) => [
    label,
    value(first),
    ...(second ? [value(second), ratio ? times(ratio(second) / ratio(first)) : ''] : []),
  ];
  const lines = table(
    [
      ...(second ? [['', first.checkpoint, second.checkpoint, 'ratio']] : []),
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
        'Bytes',
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
  const scored = `${first.tokens} predictions in windows of ${first.window} tokens.`;
  if (!divergence) return [...lines, '', scored];
  return [
    ...lines,
    '',
    `KL divergence ${divergence.klDivergence.toFixed(4)} nats, same first choice for ${percent(divergence.topOneAgreement)} of ${scored}`,
  ];
}

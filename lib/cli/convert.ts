import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { type CalibratedConversionReport, convertCalibrated } from '../conversion/calibrated/convert.ts';
import type { CalibratedConversionOptions } from '../conversion/calibrated/options.ts';
import { type ConvertOptions, convertCheckpoint } from '../conversion/convert.ts';
import { OutputFolder } from '../conversion/output-folder.ts';
import type { ConversionReport } from '../conversion/report.ts';
import { openDense } from '../conversion/source.ts';
import { openDevice } from '../device.ts';
import { BLOCK_DTYPES } from '../dtype.ts';
import { MolaeError } from '../errors.ts';
import { GROUPINGS } from '../methods/grouping/grouping.ts';
import { calibrationTokens } from '../model/calibration.ts';
import { Tokenizer } from '../model/tokenizer.ts';
import { defaultWindow, sampleWindows } from '../model/windows.ts';
import type { Arguments } from './arguments.ts';
import type { CommandDefinition } from './command.ts';
import { describe, flopsChange, formInWords, searchOf } from './conversion-report.ts';
import { AdvisedError } from './failure.ts';
import { CALIBRATE_TOKENS_OPTION, QUANTIZE_OPTION, WINDOW_OPTION } from './model-options.ts';
import { DEVICE_OPTION } from './option.ts';
import { withProgress } from './progress.ts';
import { readSizes, SIZE_OPTIONS } from './sizes.ts';
import { bytes, wrap } from './table.ts';
import { readTokens } from './text.ts';

export const convert: CommandDefinition = {
  name: 'convert',
  positionals: ['in', 'out'],
  summary: 'turn the experts of a checkpoint into latent experts',
  description: [
    "Factorizes the routed experts of every MoE layer and writes a new checkpoint folder: latent factors in place of the experts' weights, everything else byte for byte. Give either --latent-size or --target-ratio.",
    'The output appears under its name only when it is complete. A run that was stopped goes on where it was when it is started again with the same arguments.',
  ],
  options: [
    ...SIZE_OPTIONS,
    {
      name: 'rank-reduction',
      value: 'R',
      description: 'truncate each expert to this rank first; never a gain',
    },
    { name: 'solver', value: 'name', description: 'gram (default) or svd, the slow reference' },
    {
      name: 'method',
      value: 'name',
      description: "stacked-svd, the paper's, or calibrated (the default with --calibrate)",
    },
    {
      name: 'calibrate',
      value: 'text',
      description:
        'a text like those that the model will see: factors lose least of what the experts put out on it',
    },
    {
      ...CALIBRATE_TOKENS_OPTION,
      description: `${CALIBRATE_TOKENS_OPTION.description} (4096 for each expert on average)`,
    },
    WINDOW_OPTION,
    {
      name: 'grouping',
      value: 'name',
      description:
        'which experts share: consecutive (default), or affinity: in each layer those that look at the same of its inputs on the text',
    },
    {
      name: 'co-activation',
      value: 't',
      description:
        'with affinity: how much it counts that experts fire together, which saves FLOPs and traffic, from 0 (default) to 1',
    },
    {
      name: 'search',
      description:
        'try group sizes, one B for gate and up, and down left dense on a part of the text, and take the best (the model in memory, several conversions)',
    },
    { name: 'control', description: 'also report the error if the experts of a group had nothing in common' },
    {
      name: 'format',
      value: 'name',
      description:
        'latent (default), or dense: the approximated experts under their original names, for any engine',
    },
    {
      ...QUANTIZE_OPTION,
      description:
        'q8 or q4: round the factors to blocks of 32 with 8 or 4 bits each, which run as they are (CPU)',
    },
    {
      name: 'with-python',
      description: 'add the modules with which transformers loads the latent format (trust_remote_code)',
    },
    {
      name: 'force',
      description: 'replace an existing output, and begin anew what another conversion to it left unfinished',
    },
    DEVICE_OPTION,
  ],
  examples: [
    ['convert ./Qwen1.5-MoE-A2.7B ./out --target-ratio 0.3', "remove 30% of the routed experts' parameters"],
    [
      'convert ./Qwen1.5-MoE-A2.7B ./out --target-ratio 0.3 --calibrate a.txt',
      'lose a fraction of what weights alone would',
    ],
    [
      'convert ./OLMoE ./out --target-ratio 0.3 --calibrate a.txt --quantize q4',
      'and store a fifth of the bytes',
    ],
    [
      'convert ./OLMoE ./out --target-ratio 0.3 --calibrate a.txt --search',
      'which form suits this model best',
    ],
    ['convert ./Qwen1.5-MoE-A2.7B ./out --group-size 15 --latent-size 704', 'these sizes'],
    [
      'convert ./Qwen1.5-MoE-A2.7B ./dense --target-ratio 0.3 --format dense',
      'to judge the loss with another engine',
    ],
    ['convert ./Qwen1.5-MoE-A2.7B ./out --target-ratio 0.3 --json >log.json', 'for scripts'],
  ],
  async run(args, output) {
    const options = readOptions(args);
    const [input, target] = [args.positional(0), args.positional(1)];
    const text = calibrationText(args);
    const { spec, calibration } = await readSource(args, input, text);
    using device = await openDevice(args.device());
    const report = await withProgress(
      'converting',
      (signal, progress) =>
        run(input, target, calibration, {
          ...options,
          device,
          signal,
          onProgress: ({ done, total, layer, operator, group }) =>
            progress.update(done, total, `layer ${layer} ${calibration ? '' : `${operator} `}group ${group}`),
          onSurvey: ({ done, total }) => progress.update(done, total, 'choosing latent sizes'),
          onCandidate: (form) => output.note(`Trying ${formInWords(form)}`),
          onSpaceShortage: ({ neededBytes, freeBytes }) =>
            output.note(
              `${bytes(neededBytes)} of weights are to be written, and ${target} has room for ${bytes(freeBytes)}. Where it runs out, the same command goes on once there is more.`,
            ),
        }).catch(async (error: unknown) => {
          throw await withWhatIsKept(error, target);
        }),
      () => output.note('Stopping.'),
    );
    const chosen = searchOf(report)?.chosen ?? options;
    const flopsPerToken = flopsChange(spec, report, chosen.sharedGateUp ?? false);
    output.result({ ...report, flopsPerToken }, () => [
      ...describe(report, flopsPerToken, output.width),
      ...(options.rankReduction === undefined ? [] : wrap(OF_REDUCED, output.width)),
    ]);
  },
};

/** What columns of the report say with --rank-reduction. */
const OF_REDUCED =
  'Optimum and exact are of the experts as --rank-reduction left them, the other errors are against the originals.';

/** What a failure has not destroyed. */
async function withWhatIsKept(error: unknown, output: string): Promise<unknown> {
  const keeps = error instanceof MolaeError && (error.code === 'IO' || error.code === 'ABORTED');
  if (!keeps) return error;
  const { folder, files } = await OutputFolder.kept(output);
  if (files === 0) return error;
  return new AdvisedError(
    error,
    `${files} finished ${files === 1 ? 'file is' : 'files are'} kept in ${folder}, and the same command goes on from there.`,
  );
}

type AnyOptions = ConvertOptions &
  Pick<
    CalibratedConversionOptions,
    'onSurvey' | 'onCandidate' | 'window' | 'search' | 'grouping' | 'coActivation'
  >;

async function run(
  input: string,
  output: string,
  calibration: readonly number[] | undefined,
  { latentSize, ...options }: AnyOptions & { readonly latentSize?: number },
): Promise<ConversionReport | CalibratedConversionReport> {
  if (!calibration) return convertCheckpoint(input, output, { ...options, latentSize });
  return convertCalibrated(input, output, { ...options, latentSize, calibration });
}

/** The file of `--calibrate`, for the calibrated method. */
function calibrationText(args: Arguments): string | undefined {
  const file = args.string('calibrate');
  const method = args.oneOf('method', ['stacked-svd', 'calibrated']) ?? (file ? 'calibrated' : 'stacked-svd');
  if (method === 'stacked-svd') {
    for (const name of ['calibrate', 'calibrate-tokens', 'window', 'search']) {
      if (args.has(name))
        throw args.usage(`--${name} is for the method calibrated: stacked-svd sees weights only`);
    }
    if (args.string('grouping') === 'affinity') {
      throw args.usage(
        '--grouping affinity needs --calibrate <text>: it compares what experts look at on a text',
      );
    }
    return undefined;
  }
  if (file === undefined) throw args.usage('the method calibrated needs --calibrate <text>');
  for (const name of ['solver', 'rank-reduction', 'control']) {
    if (args.has(name)) throw args.usage(`--${name} is for the method stacked-svd`);
  }
  return file;
}

/** What must be known of the source before the conversion opens it: its sizes, and of a text the token ids to calibrate with. */
async function readSource(args: Arguments, path: string, text: string | undefined) {
  await using checkpoint = await openDense(path);
  const calibration = text === undefined ? undefined : await readCalibration(args, text, checkpoint);
  return { spec: checkpoint.spec, calibration };
}

async function readCalibration(args: Arguments, file: string, checkpoint: Checkpoint): Promise<number[]> {
  const decoder = checkpoint.decoder();
  const tokenizer = await Tokenizer.open(checkpoint.path);
  const tokens = args.positiveInteger('calibrate-tokens') ?? calibrationTokens(checkpoint.spec);
  const window = args.positiveInteger('window') ?? defaultWindow({ spec: decoder });
  return sampleWindows(await readTokens(file, tokenizer), tokens, window);
}

function readOptions(args: Arguments) {
  const sizes = readSizes(args);
  if (sizes.latentSize === undefined && sizes.targetRatio === undefined) {
    throw args.usage('convert needs --latent-size <r> or --target-ratio <p>');
  }
  if (args.has('search') && sizes.targetRatio === undefined) {
    throw args.usage('--search needs --target-ratio <p>: it compares forms of one size');
  }
  const grouping = args.oneOf('grouping', GROUPINGS);
  const coActivation = args.number('co-activation', 0, 1);
  if (coActivation !== undefined && grouping !== 'affinity') {
    throw args.usage('--co-activation needs --grouping affinity');
  }
  const search = args.has('search');
  return {
    ...sizes,
    // What is not asked for is searched for.
    sharedGateUp: sizes.sharedGateUp || (search ? undefined : false),
    window: args.positiveInteger('window'),
    rankReduction: args.positiveInteger('rank-reduction'),
    solver: args.oneOf('solver', ['gram', 'svd']),
    control: args.has('control'),
    search,
    grouping,
    coActivation,
    format: args.oneOf('format', ['latent', 'dense']) ?? 'latent',
    quantize: args.oneOf('quantize', BLOCK_DTYPES),
    withPython: args.has('with-python'),
    force: args.has('force'),
  };
}

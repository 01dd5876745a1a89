import { basename, resolve } from 'node:path';
import { type Inspection, inspectCheckpoint } from '../checkpoint/inspect.ts';
import type { CommandDefinition } from './command.ts';
import { bytes, count, percent, properties } from './table.ts';

export const inspect: CommandDefinition = {
  name: 'inspect',
  positionals: ['checkpoint'],
  summary: 'family, sizes and parameters of a checkpoint',
  description: [
    'Reports on a checkpoint folder in Hugging Face layout (config.json and *.safetensors), as published or as converted by molae, and says whether molae can convert it.',
  ],
  options: [],
  examples: [
    ['inspect ./Qwen1.5-MoE-A2.7B', 'what is in this checkpoint?'],
    ['inspect ./Qwen1.5-MoE-A2.7B --json | jq .expertParameters', 'for scripts'],
  ],
  async run(args, output) {
    const inspection = await inspectCheckpoint(args.positional(0));
    output.result(inspection, () => describe(inspection));
  },
};

function describe(found: Inspection): string[] {
  const { parameters, expertParameters, latent } = found;
  const dtypes = Object.entries(found.dtypes).map(([dtype, tensors]) => `${dtype} (${tensors})`);
  const share = parameters > 0 ? ` (${percent(expertParameters / parameters)} of all)` : '';
  return [
    ...properties([
      ['Checkpoint', basename(resolve(found.path))],
      ['Family', `${found.family}${found.supported ? '' : ' (not supported)'}`],
      ['Format', found.format === 'latent' ? 'latent, converted by molae' : 'dense'],
      ...(found.supported
        ? [['Runs', found.runs ? 'yes' : 'its experts only: eval and generate cannot'] as const]
        : []),
      ['Hidden size (n)', known(found.hiddenSize)],
      ['Expert width (m)', known(found.intermediateSize)],
      ['Experts (N)', known(found.numExperts)],
      ['Experts per token (K)', known(found.topK)],
      ['Layers', layers(found)],
      ...(latent === undefined
        ? []
        : ([
            ['Method', `${latent.method}${latent.sharedGateUp ? ', one shared basis for gate and up' : ''}`],
            [
              'Experts per group (k)',
              `${latent.groupSizes.join(', ')}${latent.consecutiveGroups ? '' : ', not consecutive ones'}`,
            ],
            [
              'Latent size (r)',
              Object.entries(latent.latentSizes)
                .map(([operator, sizes]) => `${operator} ${sizes.join(', ')}`)
                .join('; '),
            ],
            ...(latent.quantization === undefined ? [] : ([['Factors in', latent.quantization]] as const)),
          ] as const)),
      [
        'Tensors',
        `${found.tensors} in ${found.files} ${found.files === 1 ? 'file' : 'files'}: ${dtypes.join(', ')}`,
      ],
      ['Bytes', bytes(found.bytes)],
      ['Parameters', count(parameters)],
      ['Routed experts', `${count(expertParameters)} parameters${share}`],
    ]),
    ...found.warnings.map((warning) => `Warning: ${warning}`),
    ...found.unsupported.map((reason) => `Not supported: ${reason}`),
    ...(found.cannotRun === undefined ? [] : [`Cannot run: ${found.cannotRun}`]),
  ];
}

function known(value: number | null): string {
  return value === null ? 'unknown' : String(value);
}

function layers({ numLayers, moeLayers }: Inspection): string {
  if (moeLayers.length === numLayers) return `${numLayers}, all with routed experts`;
  return `${known(numLayers)}, ${moeLayers.length} with routed experts`;
}

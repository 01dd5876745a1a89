import { OPERATORS } from '../operators.ts';
import type { Arguments } from './arguments.ts';
import type { OptionDefinition } from './option.ts';

/** The options that decide the sizes, the same for `plan` and `convert`. */
export const SIZE_OPTIONS: readonly OptionDefinition[] = [
  {
    name: 'group-size',
    value: 'k',
    description:
      'experts that share one latent space, a divisor of their number; by default the planner chooses (1 for convert --calibrate --target-ratio)',
  },
  { name: 'latent-size', value: 'r', description: 'width of the latent spaces' },
  {
    name: 'target-ratio',
    value: 'p',
    description:
      "remove at least this share of the routed experts' parameters (0.25 for 25%): the largest such latent size",
  },
  {
    name: 'operators',
    value: 'list',
    description: 'what to factorize, of gate,up,down; by default all three',
  },
  { name: 'shared-gate-up', description: 'one latent space for gate and up together' },
];

/** The values of SIZE_OPTIONS. */
export function readSizes(args: Arguments) {
  args.exclusive('latent-size', 'target-ratio');
  const groupSize = args.positiveInteger('group-size');
  const latentSize = args.positiveInteger('latent-size');
  const targetRatio = args.share('target-ratio');
  const operators = args.list('operators', OPERATORS);
  const sharedGateUp = args.has('shared-gate-up');
  if (sharedGateUp && operators !== undefined && !(operators.includes('gate') && operators.includes('up'))) {
    throw args.usage('--shared-gate-up needs both gate and up among the --operators');
  }
  return {
    ...(groupSize === undefined ? {} : { groupSize }),
    ...(latentSize === undefined ? {} : { latentSize }),
    ...(targetRatio === undefined ? {} : { targetRatio }),
    ...(operators === undefined ? {} : { operators }),
    sharedGateUp,
  };
}

import { bench } from './bench.ts';
import type { CommandDefinition } from './command.ts';
import { compare } from './compare.ts';
import { convert } from './convert.ts';
import { doctor } from './doctor.ts';
import { evaluate } from './eval.ts';
import { generate } from './generate.ts';
import { inspect } from './inspect.ts';
import { plan } from './plan.ts';

/** The sub-commands, in the order in which the help lists them. */
export const COMMANDS: readonly CommandDefinition[] = [
  inspect,
  plan,
  convert,
  evaluate,
  compare,
  generate,
  bench,
  doctor,
];

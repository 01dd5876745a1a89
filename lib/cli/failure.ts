import { constants } from 'node:os';
import { MolaeError, type MolaeErrorCode } from '../errors.ts';
import type { CommandDefinition } from './command.ts';
import { camelCase, type OptionDefinition, optionsOf } from './option.ts';
import { Interruption } from './signals.ts';
import { UsageError } from './usage-error.ts';

export const EXIT = { done: 0, failed: 1, usage: 2 } as const;

/** 128 and the signal's number, as shells say it: 130 for Ctrl-C. */
function exitOf(signal: NodeJS.Signals): number {
  return 128 + constants.signals[signal];
}

/** A failure with advice of its own, where a command knows more than the code says. */
export class AdvisedError extends MolaeError {
  readonly advice: string;

  constructor(error: MolaeError, advice: string) {
    super(error.code, error.message, { cause: error });
    this.advice = advice;
  }
}

/** Puts the checkpoint's path before what a model that computes NaN or infinity says: there may be several of them. */
export async function namingCheckpoint<Result>(path: string, run: () => Promise<Result>): Promise<Result> {
  try {
    return await run();
  } catch (error) {
    if (!(error instanceof MolaeError) || error.code !== 'NON_FINITE') throw error;
    throw new AdvisedError(
      new MolaeError(error.code, `${path}: ${error.message}`, { cause: error }),
      'A tensor of this layer, or of one before it, is damaged: fetch the files of this checkpoint again.',
    );
  }
}

/**
 * Tells an error on stderr, one line and how to mend it.
 *
 * @param command the one that failed, as far as it is known
 * @returns the exit status
 */
export function reportError(error: unknown, command: CommandDefinition | undefined): number {
  const help = `See: molae ${command === undefined ? '' : `${command.name} `}--help`;
  if (error instanceof UsageError) {
    complain(error.message, help);
    return EXIT.usage;
  }
  if (error instanceof MolaeError) {
    if (error instanceof Interruption) {
      complain(`stopped by ${error.signal}`, adviceOf(error.cause));
      return exitOf(error.signal);
    }
    const isUsage = error.code === 'INVALID_ARGUMENT';
    const [problem = '', ...mending] = messageLines(error);
    complain(
      isUsage ? inWordsOfOptions(error, command ? optionsOf(command) : []) : problem,
      isUsage ? help : mending.join('\n') || hintFor(error),
    );
    showStack(error);
    return isUsage ? EXIT.usage : EXIT.failed;
  }
  complain(`defect: ${error instanceof Error ? error.message : String(error)}`, HINTS.INTERNAL);
  showStack(error);
  return EXIT.failed;
}

/** Where nothing comes from a file name, further lines of a message say how to mend it. */
function messageLines({ code, message }: MolaeError): string[] {
  return code === 'ADDON_UNAVAILABLE' || code === 'DEVICE_UNAVAILABLE' ? message.split('\n') : [message];
}

const HINTS: Partial<Record<MolaeErrorCode, string>> = {
  OUT_OF_MEMORY: 'Free some memory, or choose a device with more: molae doctor lists them.',
  NO_CONVERGENCE: 'Try the other solver: --solver svd or --solver gram.',
  NON_FINITE: 'The checkpoint is damaged; fetch that file again.',
  DEVICE_UNAVAILABLE: 'molae doctor lists what was found; --device cpu works everywhere.',
  BAD_CHECKPOINT:
    'A checkpoint is a folder with config.json and complete *.safetensors files; fetch what is missing or damaged.',
  UNSUPPORTED_CHECKPOINT: 'molae inspect tells more about this checkpoint.',
  INTERNAL: 'This should not happen: please report it, with the output of MOLAE_DEBUG=1 and of molae doctor.',
};

function hintFor(error: MolaeError): string | undefined {
  return adviceOf(error) ?? HINTS[error.code];
}

function adviceOf(error: unknown): string | undefined {
  return error instanceof AdvisedError ? error.advice : undefined;
}

/** The API's names of the options, as they are typed here. */
function inWordsOfOptions({ message }: MolaeError, options: readonly OptionDefinition[]): string {
  let text = message.replace(/ of type \w+$/, '');
  for (const { name } of options) {
    const own = camelCase(name);
    const named =
      own === name ? complaintOf(own) : new RegExp(`\\b${own}(s\\b|\\b of (gate|up|down)\\b|\\b)`, 'g');
    text = text.replaceAll(named, `--${name}`);
  }
  // Two options of `convert` make one argument.
  return text.replaceAll(complaintOf('calibration'), '--calibrate and --calibrate-tokens');
}

/** A single word is a name only where a value of it is complained of. */
function complaintOf(word: string): RegExp {
  return new RegExp(`(?<=\\bfor )${word}(?= but received)`, 'g');
}

function complain(problem: string, hint: string | undefined): void {
  const lines = [`molae: ${printable(problem)}`, ...(hint === undefined ? [] : [hint])];
  process.stderr.write(`${lines.join('\n')}\n`);
}

/** File names may hold anything, also what a terminal obeys. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

function showStack(error: unknown): void {
  if (process.env.MOLAE_DEBUG && error instanceof Error) console.error(error);
}

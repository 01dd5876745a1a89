import { constants } from 'node:os';
import { MolaeError, type MolaeErrorCode } from '../errors.ts';
import type { CommandDefinition } from './command.ts';
import { camelCase, type OptionDefinition, optionsOf } from './option.ts';
import type { FailureReport } from './output.ts';
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

/** @param command the one that failed, as far as it is known */
export function explain(
  error: unknown,
  command: CommandDefinition | undefined,
): FailureReport & { readonly status: number } {
  const help = `See: molae ${command === undefined ? '' : `${command.name} `}--help`;
  if (error instanceof UsageError)
    return { status: EXIT.usage, code: 'INVALID_ARGUMENT', message: error.message, advice: help };
  if (error instanceof Interruption) {
    const message = `stopped by ${error.signal}`;
    return { status: exitOf(error.signal), code: error.code, message, advice: adviceOf(error.cause) };
  }
  if (!(error instanceof MolaeError)) {
    const message = `defect: ${error instanceof Error ? error.message : String(error)}`;
    return { status: EXIT.failed, code: 'INTERNAL', message, advice: HINTS.INTERNAL };
  }
  const { code } = error;
  if (code === 'INVALID_ARGUMENT') {
    const message = inWordsOfOptions(error, command ? optionsOf(command) : []);
    return { status: EXIT.usage, code, message, advice: help };
  }
  const [message = '', ...mending] = messageLines(error);
  return { status: EXIT.failed, code, message, advice: mending.join('\n') || hintFor(error) };
}

/** Tells people on stderr: a line, and how to mend it; with MOLAE_DEBUG=1 also where it comes from. */
export function complain({ message, advice }: FailureReport, error: unknown): void {
  const lines = [`molae: ${printable(message)}`, ...(advice === undefined ? [] : [advice])];
  process.stderr.write(`${lines.join('\n')}\n`);
  const isExpected = error instanceof UsageError || error instanceof Interruption;
  if (process.env.MOLAE_DEBUG && error instanceof Error && !isExpected) console.error(error);
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

/** File names may hold anything, also what a terminal obeys. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

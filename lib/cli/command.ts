import type { Arguments } from './arguments.ts';
import type { Output } from './output.ts';

export interface OptionDefinition {
  /** As it is typed, without the dashes. */
  readonly name: string;
  /** What stands for its value in the help; an option without one is a switch. */
  readonly value?: string;
  readonly description: string;
}

/** A sub-command: one file exports one of these, and `commands.ts` lists it. */
export interface CommandDefinition {
  readonly name: string;
  /** The names of its positional arguments, all of them required. */
  readonly positionals: readonly string[];
  /** One line, for the list of commands. */
  readonly summary: string;
  /** Paragraphs, for the command's own help. */
  readonly description: readonly string[];
  /** What values of an option mean, under a title of its own. */
  readonly glossary?: { readonly title: string; readonly entries: readonly (readonly [string, string])[] };
  /** Its own options; `--json` and `--help` come by themselves. */
  readonly options: readonly OptionDefinition[];
  /** Command lines without `molae`, each with what it is good for. */
  readonly examples: readonly (readonly [commandLine: string, purpose: string])[];
  /** Does the work. Throws a UsageError for wrong usage, anything else for a failure. */
  run(args: Arguments, output: Output): Promise<void>;
}

export const JSON_OPTION: OptionDefinition = {
  name: 'json',
  description: 'print one JSON object on stdout instead of text',
};

export const HELP_OPTION: OptionDefinition = { name: 'help', description: 'show this help' };

export const DEVICE_OPTION: OptionDefinition = {
  name: 'device',
  value: 'name',
  description: 'auto (default), cpu, cuda or cuda:<index>',
};

/** Every option that a command takes. */
export function optionsOf(command: CommandDefinition): readonly OptionDefinition[] {
  return [...command.options, JSON_OPTION, HELP_OPTION];
}

/** The name that the API gives an option: `group-size` → `groupSize`. cac does the same. */
export function camelCase(name: string): string {
  return name.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/** Wrong usage: exit 2, with a pointer to the help. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

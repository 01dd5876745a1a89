import type { Arguments } from './arguments.ts';
import type { OptionDefinition } from './option.ts';
import type { Output } from './output.ts';

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

import { type CAC, cac } from 'cac';
import { Arguments, type OptionValues } from './arguments.ts';
import type { CommandDefinition } from './command.ts';
import { camelCase, type OptionDefinition, optionsOf } from './option.ts';
import { UsageError } from './usage-error.ts';

/** What the user asks for. */
type Request =
  | { readonly kind: 'version' }
  | { readonly kind: 'help'; readonly command: CommandDefinition | undefined }
  /** `molae` alone: the help is shown, but nothing was done. */
  | { readonly kind: 'nothing' }
  | {
      readonly kind: 'run';
      readonly command: CommandDefinition;
      /** @throws UsageError */
      readArguments(): Arguments;
    };

/**
 * Put before every value on its way through cac, which would otherwise turn `007` into 7, `--json true x` into a
 * switch that swallows `true`, and `-3` into an option.
 */
const OPAQUE = '\u0001';

/** @throws UsageError when no command can be recognized */
export function parse(argv: readonly string[], commands: readonly CommandDefinition[]): Request {
  const cli = declare(commands);
  const opaque = makeOpaque(argv);
  cli.parse(['node', 'molae', ...opaque], { run: false });
  const name = transparent(cli.matchedCommandName ?? '');
  const command = commands.find((candidate) => candidate.name === name);
  const words = [...cli.args, ...((cli.options['--'] ?? []) as string[])].map(transparent);
  if (command === undefined) return withoutCommand(opaque, words, commands);

  if (asksForHelp(opaque)) return { kind: 'help', command };
  return {
    kind: 'run',
    command,
    readArguments() {
      checkOptionTokens(opaque, optionsOf(command));
      checkPositionals(words, command);
      return new Arguments(words, optionValues(cli, command));
    },
  };
}

/** Also where the rest of what was typed is wrong usage. */
export function asksForJson(argv: readonly string[]): boolean {
  return beforeWords(argv).includes('--json');
}

/** Read off what was typed: cac takes the h of `-other` for `-h`, too. */
function asksForHelp(tokens: readonly string[]): boolean {
  const options = beforeWords(tokens);
  return options.includes('-h') || options.includes('--help');
}

/** What comes before `--`, after which nothing is an option. */
function beforeWords(tokens: readonly string[]): readonly string[] {
  const end = tokens.indexOf('--');
  return end === -1 ? tokens : tokens.slice(0, end);
}

function optionValues(cli: CAC, command: CommandDefinition): OptionValues {
  const values: OptionValues = new Map();
  for (const { name } of optionsOf(command)) {
    const value: unknown = cli.options[camelCase(name)];
    if (Array.isArray(value)) values.set(name, value.map(transparent));
    else if (typeof value === 'string') values.set(name, transparent(value));
    else if (value === true) values.set(name, true);
  }
  return values;
}

function declare(commands: readonly CommandDefinition[]): CAC {
  const cli = cac('molae');
  for (const definition of commands) {
    const command = cli.command(definition.name, definition.summary).alias(OPAQUE + definition.name);
    for (const { name, value } of optionsOf(definition)) {
      const short = name === 'help' ? '-h, ' : '';
      command.option(`${short}--${name}${value === undefined ? '' : ' <value>'}`, '');
    }
  }
  return cli;
}

function makeOpaque(argv: readonly string[]): string[] {
  const end = argv.indexOf('--');
  return argv.map((token, index) => {
    if (end !== -1 && index >= end) return index === end ? token : OPAQUE + token;
    if (!isOption(token)) return OPAQUE + token;
    const equals = token.indexOf('=');
    return equals === -1 ? token : `${token.slice(0, equals)}=${OPAQUE}${token.slice(equals + 1)}`;
  });
}

/** Anything with a dash in front but a dash alone and a negative number. */
function isOption(token: string): boolean {
  return /^-[^\d.]/.test(token);
}

function transparent(value: string): string {
  return value.startsWith(OPAQUE) ? value.slice(OPAQUE.length) : value;
}

function withoutCommand(
  tokens: readonly string[],
  words: readonly string[],
  commands: readonly CommandDefinition[],
): Request {
  const [first, second] = words;
  if (first === 'help') {
    if (second === undefined) return { kind: 'help', command: undefined };
    return { kind: 'help', command: findCommand(second, commands) };
  }
  if (first !== undefined) findCommand(first, commands);
  const flags = tokens.filter((token) => token !== '--');
  const unknown = flags.find((token) => !['-h', '--help', '-v', '-V', '--version'].includes(token));
  if (unknown !== undefined) {
    throw new UsageError(`${unknown.replaceAll(OPAQUE, '')}: no command was given`);
  }
  if (flags.some((token) => token === '-h' || token === '--help'))
    return { kind: 'help', command: undefined };
  return { kind: flags.length > 0 ? 'version' : 'nothing' };
}

function findCommand(name: string, commands: readonly CommandDefinition[]): CommandDefinition {
  const found = commands.find((command) => command.name === name);
  if (found !== undefined) return found;
  const near = nearest(
    name,
    commands.map((command) => command.name),
  );
  throw new UsageError(
    `unknown command ${JSON.stringify(name)}; ${near === undefined ? `there are ${commands.map((command) => command.name).join(', ')}` : `did you mean ${near}?`}`,
  );
}

/** Every option is known, comes once or is repeatable, and has a value exactly where it takes one. */
function checkOptionTokens(tokens: readonly string[], options: readonly OptionDefinition[]): void {
  const seen = new Set<string>();
  for (const [index, token] of tokens.entries()) {
    if (token === '--') return;
    if (token.startsWith(OPAQUE)) continue;
    const typed = token.split('=', 1)[0] as string;
    const name = typed === '-h' ? 'help' : typed.startsWith('--') ? typed.slice(2) : undefined;
    const option = options.find((candidate) => candidate.name === name);
    if (option === undefined) {
      const near = nearest(
        typed.replace(/^-+(no-)?/, '').toLowerCase(),
        options.map((candidate) => candidate.name),
      );
      throw new UsageError(`unknown option ${typed}${near === undefined ? '' : `; did you mean --${near}?`}`);
    }
    if (seen.has(option.name) && !option.repeatable) throw new UsageError(`--${option.name} is given twice`);
    seen.add(option.name);
    const attached = token.length > typed.length;
    if (option.value === undefined) {
      if (attached) throw new UsageError(`--${option.name} takes no value`);
    } else if (attached ? token === `${typed}=${OPAQUE}` : !tokens[index + 1]?.startsWith(OPAQUE)) {
      const next = tokens[index + 1];
      const dashed =
        !attached && next !== undefined && next !== '--'
          ? `; one with a dash in front: --${option.name}=${next}`
          : '';
      throw new UsageError(`--${option.name} needs a value: --${option.name} <${option.value}>${dashed}`);
    }
  }
}

function checkPositionals(words: readonly string[], { name, positionals }: CommandDefinition): void {
  const missing = positionals.slice(words.length);
  if (missing.length > 0) {
    throw new UsageError(`${name} needs ${missing.map((what) => `<${what}>`).join(' and ')}`);
  }
  const extra = words.slice(positionals.length);
  if (extra.length > 0) {
    const wanted =
      positionals.length === 0 ? 'no arguments' : `only ${positionals.map((what) => `<${what}>`).join(' ')}`;
    throw new UsageError(
      `${name} takes ${wanted} but also received ${extra.map((word) => JSON.stringify(word)).join(', ')}`,
    );
  }
  const empty = words.indexOf('');
  if (empty !== -1) throw new UsageError(`<${positionals[empty]}> is empty`);
}

/** The name that a typing error most likely meant. */
function nearest(typed: string, names: readonly string[]): string | undefined {
  const plain = typed.replaceAll(/[-_]/g, '');
  let best: string | undefined;
  let least = Math.max(1, Math.floor(plain.length / 3)) + 1;
  for (const name of names) {
    const distance = editDistance(plain, name.replaceAll('-', ''));
    if (distance < least) {
      best = name;
      least = distance;
    }
  }
  return best ?? names.find((name) => plain.length >= 3 && name.replaceAll('-', '').startsWith(plain));
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitution, (row[j] as number) + 1, (next[j - 1] as number) + 1));
    }
    row = next;
  }
  return row[b.length] as number;
}

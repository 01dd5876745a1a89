import type { CommandDefinition } from './command.ts';
import { HELP_OPTION, JSON_OPTION, type OptionDefinition, optionsOf } from './option.ts';
import { wrap } from './table.ts';

const WIDTH = 80;

export function generalHelp(commands: readonly CommandDefinition[], version: string): string {
  const calls = commands.map(({ name, positionals }) =>
    [name, ...positionals.map((what) => `<${what}>`)].join(' '),
  );
  return sections([
    `molae ${version}: shrink Mixture-of-Experts checkpoints into latent experts`,
    'Usage: molae <command> [options]',
    heading('Commands', definitions(calls.map((call, index) => [call, commands[index]?.summary ?? '']))),
    heading('Options of every command', definitions([JSON_OPTION, HELP_OPTION].map(describeOption))),
    heading('Without a command', definitions([['--version', 'show the version of molae']])),
    heading(
      'Examples',
      examples([
        ['inspect ./Qwen1.5-MoE-A2.7B', 'what is in this checkpoint?'],
        [
          'plan ./Qwen1.5-MoE-A2.7B --target-ratio 0.3',
          'what would removing 30% of the expert weights cost and save?',
        ],
        ['convert ./Qwen1.5-MoE-A2.7B ./out --target-ratio 0.3', 'do it'],
      ]),
    ),
    'Results go to stdout, progress and errors to stderr.\nExit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.',
    'More: molae <command> --help',
  ]);
}

export function commandHelp(command: CommandDefinition): string {
  const { glossary } = command;
  const usage = ['molae', command.name, ...command.positionals.map((what) => `<${what}>`), '[options]'].join(
    ' ',
  );
  return sections([
    `Usage: ${usage}`,
    ...command.description.map((paragraph) => wrap(paragraph, WIDTH).join('\n')),
    ...(glossary ? [heading(glossary.title, definitions(glossary.entries))] : []),
    heading('Options', definitions(optionsOf(command).map(describeOption))),
    heading('Examples', examples(command.examples)),
  ]);
}

function describeOption({ name, value, description }: OptionDefinition): [string, string] {
  const short = name === 'help' ? '-h, ' : '';
  return [`${short}--${name}${value === undefined ? '' : ` <${value}>`}`, description];
}

function sections(parts: readonly string[]): string {
  return `${parts.join('\n\n')}\n`;
}

function heading(title: string, lines: readonly string[]): string {
  return [`${title}:`, ...lines.map((line) => `  ${line}`)].join('\n');
}

function definitions(entries: readonly (readonly [string, string])[]): string[] {
  const left = Math.max(...entries.map(([term]) => term.length)) + 2;
  return entries.flatMap(([term, meaning]) =>
    wrap(meaning, WIDTH - 2 - left).map((line, index) => (index === 0 ? term : '').padEnd(left) + line),
  );
}

function examples(entries: readonly (readonly [string, string])[]): string[] {
  return entries.flatMap(([commandLine, purpose]) => [`# ${purpose}`, `molae ${commandLine}`]);
}

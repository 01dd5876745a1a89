import type { CommandDefinition } from './command.ts';
import { HELP_OPTION, JSON_OPTION, type OptionDefinition, optionsOf } from './option.ts';
import { wrap } from './table.ts';

/** The most columns that help takes. */
export const HELP_WIDTH = 80;

/** The least that the meaning of a term needs beside it. */
const LEAST_MEANING = 24;

export function generalHelp(commands: readonly CommandDefinition[], version: string, width: number): string {
  const calls = commands.map(({ name, positionals }) =>
    [name, ...positionals.map((what) => `<${what}>`)].join(' '),
  );
  return sections([
    wrap(`molae ${version}: shrink Mixture-of-Experts checkpoints into latent experts`, width).join('\n'),
    'Usage: molae <command> [options]',
    heading(
      'Commands',
      definitions(
        calls.map((call, index) => [call, commands[index]?.summary ?? '']),
        width,
      ),
    ),
    heading('Options of every command', definitions([JSON_OPTION, HELP_OPTION].map(describeOption), width)),
    heading('Without a command', definitions([['--version', 'show the version of molae']], width)),
    heading(
      'Examples',
      examples(
        [
          ['inspect ./Qwen1.5-MoE-A2.7B', 'what is in this checkpoint?'],
          [
            'plan ./Qwen1.5-MoE-A2.7B --target-ratio 0.3',
            'what would removing 30% of the expert weights cost and save?',
          ],
          ['convert ./Qwen1.5-MoE-A2.7B ./out --target-ratio 0.3', 'do it'],
        ],
        width,
      ),
    ),
    [
      'Results go to stdout, progress and errors to stderr.',
      'Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.',
    ]
      .flatMap((line) => wrap(line, width))
      .join('\n'),
    'More: molae <command> --help',
  ]);
}

export function commandHelp(command: CommandDefinition, width: number): string {
  const { glossary } = command;
  const usage = ['molae', command.name, ...command.positionals.map((what) => `<${what}>`), '[options]'].join(
    ' ',
  );
  return sections([
    `Usage: ${usage}`,
    ...command.description.map((paragraph) => wrap(paragraph, width).join('\n')),
    ...(glossary ? [heading(glossary.title, definitions(glossary.entries, width))] : []),
    heading('Options', definitions(optionsOf(command).map(describeOption), width)),
    heading('Examples', examples(command.examples, width)),
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

/** Terms with their meanings beside them, or below them where that would be too narrow. */
function definitions(entries: readonly (readonly [string, string])[], width: number): string[] {
  const left = Math.max(...entries.map(([term]) => term.length)) + 2;
  const right = width - 2 - left;
  if (right < LEAST_MEANING) {
    return entries.flatMap(([term, meaning]) => [
      term,
      ...wrap(meaning, width - 2 - 4).map((line) => `    ${line}`),
    ]);
  }
  return entries.flatMap(([term, meaning]) =>
    wrap(meaning, right).map((line, index) => (index === 0 ? term : '').padEnd(left) + line),
  );
}

function examples(entries: readonly (readonly [string, string])[], width: number): string[] {
  return entries.flatMap(([commandLine, purpose]) => [
    ...wrap(purpose, width - 4).map((line) => `# ${line}`),
    `molae ${commandLine}`,
  ]);
}

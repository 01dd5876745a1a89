import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { COMMANDS } from '../../lib/cli/commands.ts';
import { parse } from '../../lib/cli/parse.ts';
import { ROOT } from './support.ts';

const readme = await readFile(join(ROOT, 'README.md'), 'utf8');

function blocks(language: string): string[] {
  return [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, 'gms'))].map(
    (found) => found[1] as string,
  );
}

/** A command line as a shell would split it: at spaces, but not inside quotes. */
function words(line: string): string[] {
  return [...line.matchAll(/"([^"]*)"|\S+/g)].map(([word, quoted]) => quoted ?? word);
}

it("README's command lines, and those of the help, are right usage", () => {
  const lines = blocks('(?:sh)?')
    .flatMap((block) => block.split('\n'))
    .map((line) => line.replace(/^\$ /, ''))
    .filter((line) => line.startsWith('molae '))
    .map((line) => words(line.replace(/ +#.*/, '')).slice(1));
  const examples = COMMANDS.flatMap((command) => command.examples).map(([line]) =>
    words(line.replace(/ [|>].*/, '')),
  );
  expect(lines.length).toBeGreaterThan(5);
  for (const line of [...lines, ...examples]) {
    const request = parse(line, COMMANDS);
    expect(request.kind, line.join(' ')).toBe('run');
    if (request.kind === 'run') request.readArguments();
  }
});

#!/usr/bin/env node
import { COMMANDS } from './commands.ts';
import { commandHelp, generalHelp } from './help.ts';
import { EXIT, Output, reportError } from './output.ts';
import { parse } from './parse.ts';
import { packageVersion } from './version.ts';

/** @returns the exit status */
async function main(argv: readonly string[]): Promise<number> {
  const request = parse(argv, COMMANDS);
  switch (request.kind) {
    case 'version':
      process.stdout.write(`${packageVersion()}\n`);
      return EXIT.done;
    case 'help':
      process.stdout.write(
        request.command === undefined
          ? generalHelp(COMMANDS, packageVersion())
          : commandHelp(request.command),
      );
      return EXIT.done;
    case 'nothing':
      process.stderr.write(generalHelp(COMMANDS, packageVersion()));
      return EXIT.usage;
    case 'run':
      await request.command.run(request.args, new Output(request.args.has('json')));
      return EXIT.done;
  }
}

// A reader that went away (`molae inspect x | head -1`) is no failure.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit();
  });
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  process.exitCode = reportError(error);
}

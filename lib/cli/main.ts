#!/usr/bin/env node
import { packageVersion } from '../package.ts';
import type { Arguments } from './arguments.ts';
import type { CommandDefinition } from './command.ts';
import { COMMANDS } from './commands.ts';
import { EXIT, reportError } from './failure.ts';
import { commandHelp, generalHelp, HELP_WIDTH } from './help.ts';
import { columnsOf, Output } from './output.ts';
import { parse } from './parse.ts';

/** The command at work, for error messages. */
let running: CommandDefinition | undefined;

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
          ? generalHelp(COMMANDS, packageVersion(), columnsOf(process.stdout, HELP_WIDTH))
          : commandHelp(request.command, columnsOf(process.stdout, HELP_WIDTH)),
      );
      return EXIT.done;
    case 'nothing':
      process.stderr.write(generalHelp(COMMANDS, packageVersion(), columnsOf(process.stderr, HELP_WIDTH)));
      return EXIT.usage;
    case 'run':
      running = request.command;
      await run(request.command, request.readArguments());
      return EXIT.done;
  }
}

function run(command: CommandDefinition, args: Arguments): Promise<void> {
  return command.run(args, new Output(args.has('json')));
}

// A reader that goes away (`molae inspect x | head -1`) is no failure, and stops no conversion. A full disk is one.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    process.exitCode = EXIT.failed;
    if (stream === process.stdout) process.stderr.write(`molae: cannot write the result: ${error.message}\n`);
  });
}

try {
  const status = await main(process.argv.slice(2));
  process.exitCode ??= status;
} catch (error) {
  process.exitCode = reportError(error, running);
}

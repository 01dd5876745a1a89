#!/usr/bin/env node
import { packageVersion } from '../package.ts';
import type { CommandDefinition } from './command.ts';
import { COMMANDS } from './commands.ts';
import { complain, EXIT, explain } from './failure.ts';
import { commandHelp, generalHelp, HELP_WIDTH } from './help.ts';
import { columnsOf, Output } from './output.ts';
import { asksForJson, parse } from './parse.ts';

/** The command at work, for error messages. */
let running: CommandDefinition | undefined;

/** @returns the exit status */
async function main(argv: readonly string[], output: Output): Promise<number> {
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
      await running.run(request.readArguments(), output);
      return EXIT.done;
  }
}

// A reader that goes away (`molae inspect x | head -1`) is no failure, and stops no conversion. A full disk is one.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    process.exitCode = EXIT.failed;
    if (stream === process.stdout) process.stderr.write(`molae: cannot write the result: ${error.message}\n`);
  });
}

const argv = process.argv.slice(2);
const output = new Output(asksForJson(argv));
try {
  const status = await main(argv, output);
  process.exitCode ??= status;
} catch (error) {
  const report = explain(error, running);
  complain(report, error);
  output.failure(report);
  process.exitCode = report.status;
}

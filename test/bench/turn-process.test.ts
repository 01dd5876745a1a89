import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { onlyWay, orAbsent, Peers } from '../../bench/support/peers.ts';
import { TurnProcess } from '../../bench/support/turn-process.ts';
import { statistics, Took, takeTurns } from '../../lib/bench/timing.ts';
import { compile, ROOT } from '../cli/support.ts';
import { deadline } from '../support/deadline.ts';

/** A peer that says who it is and answers each line with what `took` makes of it. */
function start(took: string): Promise<TurnProcess<{ readonly version: string; readonly pid: number }>> {
  const script = `
    const say = (line) => process.stdout.write(JSON.stringify(line) + '\\n');
    setInterval(() => {}, 1);
    say({ version: 'stand-in 1', pid: process.pid });
    require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => say({ ms: ${took} }));`;
  return TurnProcess.start(process.execPath, ['-e', script]);
}

/** T: stopped. A process may end between any two looks at it, even while its file is read (ESRCH). */
function stateOf(pid: number): string | undefined {
  try {
    return /\) (\w) /.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1];
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return 'gone';
    throw error;
  }
}

async function becomes(state: () => string | undefined, wanted: string): Promise<void> {
  for (let tries = 0; tries < 500 && state() !== wanted; tries++) await wait(10);
  expect(state()).toBe(wanted);
}

it('a turn tells what the peer says that it took', async () => {
  using peer = await start('line.length');
  expect(peer.ready.version).toBe('stand-in 1');
  expect(await peer.turn('four')).toEqual({ ms: 4 });
  expect(await peer.time('four')).toEqual(new Took(4));
  expect(await peer.time()).toEqual(new Took(0));
});

it.runIf(process.platform === 'linux')('between its turns a peer is stopped', async () => {
  using peer = await start('1');
  const state = () => stateOf(peer.ready.pid);
  await becomes(state, 'T');
  await peer.turn();
  await becomes(state, 'T');
});

it('a peer that is disposed ends, though it was stopped', async () => {
  const peer = await start('1');
  peer[Symbol.dispose]();
  const alive = () => {
    try {
      process.kill(peer.ready.pid, 0);
      return 'yes';
    } catch {
      return 'no';
    }
  };
  await becomes(alive, 'no');
});

describe.runIf(process.platform === 'linux')('a peer that is stopped ends with us', () => {
  const folder = mkdtempSync(join(tmpdir(), 'molae-bench-'));
  const compiled = join(folder, 'bench/support/turn-process.js');
  beforeAll(
    () =>
      compile([
        '-p',
        join(ROOT, 'tsconfig.bench.json'),
        '--outDir',
        folder,
        '--tsBuildInfoFile',
        join(folder, 'info'),
      ]),
    deadline(60),
  );
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it.each(['SIGTERM', 'SIGINT', 'exit'] as const)('by %s', async (how) => {
    const peer = 'console.log(JSON.stringify({ pid: process.pid })); setInterval(() => {}, 1000)';
    const us = `
      const { TurnProcess } = await import(${JSON.stringify(pathToFileURL(compiled).href)});
      const peer = await TurnProcess.start(process.execPath, ['-e', ${JSON.stringify(peer)}]);
      console.log(peer.ready.pid);
      ${how === 'exit' ? 'process.exit();' : 'setInterval(() => {}, 1000);'}`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', us]);
    const closed = once(child, 'close');
    const [line] = await once(child.stdout, 'data');
    const pid = Number(String(line));
    if (how !== 'exit') child.kill(how);
    expect((await closed)[1]).toBe(how === 'exit' ? null : how);
    await becomes(() => stateOf(pid), 'gone');
  });
});

it('takes turns with calls of this process, each by its own clock', async () => {
  using peer = await start('1000');
  const order: string[] = [];
  const times = await takeTurns(
    { here: () => order.push('here'), peer: () => peer.time() },
    { seconds: 0.001, minSamples: 3 },
    async (name) => void order.push(`before ${name}`),
  );
  expect(times.peer).toEqual([1000, 1000, 1000]);
  expect(Math.max(...times.here)).toBeLessThan(1000);
  expect(order.slice(1, 4)).toEqual(['before here', 'here', 'before peer']);
});

it('a peer that ends, or does not say that it is ready, fails with what it said last', async () => {
  const dies = ['-e', 'console.error("Error: no such operator\\n    at somewhere"); process.exit(1)'];
  await expect(TurnProcess.start(process.execPath, dies)).rejects.toThrow('Error: no such operator');
  await expect(TurnProcess.start('no-such-program', [])).rejects.toThrow('ENOENT');
  const chats = ['-e', 'console.log("hello"); setInterval(() => {}, 1000)'];
  await expect(TurnProcess.start(process.execPath, chats)).rejects.toThrow('it said hello');
  const tells = ['-e', 'console.log(JSON.stringify({ failed: "one line\\nand another" }))'];
  await expect(TurnProcess.start(process.execPath, tells)).rejects.toThrow('one line\nand another');
  using silent = await start('process.exit(3)');
  await expect(silent.turn()).rejects.toThrow('ended with 3');
});

it('benches do without a peer that is not there', async () => {
  const absent = await orAbsent<{ version: string }>(() => TurnProcess.start('no-such-program', []));
  const there = await orAbsent(() => start('7'));
  using peers = new Peers({ absent: onlyWay(absent), there: onlyWay(there) }, [absent, there]);
  const times = await takeTurns(peers.calls, { seconds: 0, minSamples: 2 });
  expect(Object.keys(times)).toEqual(['there']);
  const results = peers.results((name) => statistics(times[name] as number[]));
  expect(results.absent).toEqual({ absent: expect.stringContaining('ENOENT') });
  expect(results.there).toMatchObject({ medianMs: 7, samples: 2, version: 'stand-in 1' });
});

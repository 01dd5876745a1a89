import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { openProgress } from '../../lib/cli/progress.ts';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout', 'Date'] });
});

afterEach(() => {
  vi.useRealTimers();
});

/** What progress writes to: a file or a pipe, or a terminal of 80 columns. */
function openOn(terminal: boolean) {
  const stream = Object.assign(new PassThrough({ encoding: 'utf8' }), {
    isTTY: terminal,
    columns: 80,
    cursorTo: () => true,
    moveCursor: () => true,
    clearLine: () => true,
  });
  const progress = openProgress('working', stream as unknown as NodeJS.WriteStream);
  return { progress, written: (): string => stream.read() ?? '' };
}

it('lines come at once, then for each tenth, never within a second of each other', () => {
  const { progress, written } = openOn(false);
  progress.update(0, 100, 'first');
  expect(written()).toBe('working: 0% (0 of 100), first\n');
  vi.advanceTimersByTime(999);
  progress.update(50, 100, 'too soon');
  expect(written()).toBe('');
  vi.advanceTimersByTime(1);
  progress.update(50, 100, 'half');
  expect(written()).toBe('working: 50% (50 of 100), half\n');
  vi.advanceTimersByTime(1000);
  progress.update(59, 100, 'the same tenth');
  expect(written()).toBe('');
  progress.update(60, 100, 'the next');
  expect(written()).toBe('working: 60% (60 of 100), the next\n');
});

it('lines are not silent for long, even within a tenth', () => {
  const { progress, written } = openOn(false);
  progress.update(1, 1000, 'slow');
  written();
  vi.advanceTimersByTime(29_999);
  progress.update(2, 1000, 'slow');
  expect(written()).toBe('');
  vi.advanceTimersByTime(1);
  progress.update(2, 1000, 'slow');
  expect(written()).toBe('working: 0% (2 of 1000), slow\n');
});

it('the last line says that all is done, once', () => {
  const { progress, written } = openOn(false);
  progress.update(0, 8, 'a');
  progress.update(8, 8, 'told too soon to be shown');
  written();
  progress.complete();
  expect(written()).toBe('working: 100% (8 of 8)\n');

  vi.advanceTimersByTime(1000);
  progress.update(8, 8, 'shown');
  written();
  progress.complete();
  expect(written()).toBe('');
});

it('nothing is said of work that never told how far it is', () => {
  const { progress, written } = openOn(false);
  progress.complete();
  progress.stop();
  expect(written()).toBe('');
});

it('a second stage has lines of its own', () => {
  const { progress, written } = openOn(false);
  progress.update(5, 10, 'one');
  vi.advanceTimersByTime(1000);
  progress.update(10, 20, 'two');
  expect(written()).toBe('working: 50% (5 of 10), one\nworking: 50% (10 of 20), two\n');
});

it('a bar says what is left of the stage at hand, after a second', () => {
  const { progress, written } = openOn(true);
  const shown = (done: number, total: number) => {
    progress.update(done, total, 'note');
    vi.advanceTimersByTime(1000);
    return written();
  };
  expect(shown(0, 100)).not.toMatch(/left/);
  vi.advanceTimersByTime(2000);
  expect(shown(30, 100)).toMatch(/ 7\.0 s left /);
  expect(shown(1, 10)).not.toMatch(/left/);
  expect(shown(2, 10)).toMatch(/ 4\.0 s left /);
  progress.stop();
});

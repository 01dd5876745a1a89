import { describe, expect, test } from 'vitest';
import { madeAhead } from '../lib/made-ahead.ts';

/** Notes what is made and discarded, in order. */
function workshop(failing?: number) {
  const notes: string[] = [];
  const make = async (index: number) => {
    notes.push(`begin ${index}`);
    await new Promise((resolve) => setImmediate(resolve));
    if (index === failing) throw new Error(`no ${index}`);
    return index;
  };
  return { notes, items: madeAhead(3, make, (item) => notes.push(`discard ${item}`)) };
}

describe('things made ahead', () => {
  test('come in order, the next begun before the last is used, and discarded when it was', async () => {
    const { notes, items } = workshop();
    for await (const item of items) notes.push(`use ${item}`);
    expect(notes).toEqual(
      'begin 0,begin 1,use 0,discard 0,begin 2,use 1,discard 1,use 2,discard 2'.split(','),
    );
  });

  test('that nobody wants any more are discarded, the one being made too', async () => {
    const { notes, items } = workshop();
    for await (const item of items) if (item === 1) break;
    expect(notes).toEqual('begin 0,begin 1,discard 0,begin 2,discard 1,discard 2'.split(','));
  });

  test('that fail are known where they are asked for, after those before were used', async () => {
    const { notes, items } = workshop(1);
    const use = async () => {
      for await (const item of items) notes.push(`use ${item}`);
    };
    await expect(use()).rejects.toThrow('no 1');
    expect(notes).toEqual('begin 0,begin 1,use 0,discard 0'.split(','));
  });

  test('may be none', async () => {
    const never = madeAhead(
      0,
      async () => expect.unreachable(),
      () => {},
    );
    expect(await never.next()).toEqual({ done: true, value: undefined });
  });
});

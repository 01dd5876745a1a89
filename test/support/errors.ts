import { expect } from 'vitest';
import type { MolaeErrorCode } from '../../lib/errors.ts';

/** What an error with this code, and these words in its message, looks like to `toMatchObject`. */
export function molaeError(code: MolaeErrorCode, ...words: string[]) {
  return {
    name: 'MolaeError',
    code,
    message: {
      asymmetricMatch: (text: unknown) => words.every((word) => String(text).includes(word)),
    },
  };
}

/** An INVALID_ARGUMENT whose message has all of the words, for `toThrow` and `toEqual`. */
export function invalid(...words: string[]) {
  return expect.objectContaining(molaeError('INVALID_ARGUMENT', ...words));
}

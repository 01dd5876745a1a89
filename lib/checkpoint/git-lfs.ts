import { badCheckpoint } from './problems.ts';

/** How the text begins that Git leaves in the place of a file that it keeps elsewhere (git-lfs, docs/spec.md). */
const POINTER = new TextEncoder().encode('version https://git-lfs.github.com/spec/');

/**
 * Refuses a file that is only Git LFS's pointer to it, which a clone without Git LFS has for every large file.
 *
 * @param begin the file's first bytes: eight are enough to tell a pointer from a safetensors header.
 * @throws BAD_CHECKPOINT naming the file and how to get it.
 */
export function refuseLfsPointer(begin: Uint8Array, file: string): void {
  const known = POINTER.subarray(0, begin.length);
  if (known.length < 8 || known.some((byte, i) => byte !== begin[i])) return;
  throw badCheckpoint(
    file,
    'a Git LFS pointer, not the file itself. Fetch it: install Git LFS, then "git lfs pull" in this folder',
  );
}

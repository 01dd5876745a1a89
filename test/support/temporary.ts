import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach } from 'vitest';

/** A folder of a test file's own, deleted after its last test and what else it does at its end. */
export async function outputFolder(name: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), `molae-${name}-`));
  afterAll(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

const folders: string[] = [];

afterEach(async () => {
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true, force: true });
});

/** A folder of a test's own, deleted after it. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'molae-test-'));
  folders.push(folder);
  return folder;
}

/** Paths in a folder at which there is nothing yet, another with each call. */
export function freshPaths(folder: string): () => string {
  let made = 0;
  return () => join(folder, `out-${made++}`);
}

import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** Copies a checkpoint to `copy`, with other fields in its config.json. */
export async function copyWithConfig(source: string, copy: string, changes: object): Promise<void> {
  await cp(source, copy, { recursive: true });
  const config = JSON.parse(await readFile(join(source, 'config.json'), 'utf8'));
  await writeFile(join(copy, 'config.json'), JSON.stringify({ ...config, ...changes }));
}

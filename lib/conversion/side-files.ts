import { copyFile, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CONFIG_FILE } from '../checkpoint/config.ts';
import { type JsonObject, stringifyLike } from '../checkpoint/json.ts';
import { INDEX_FILE } from '../checkpoint/shards.ts';
import { attempt } from '../files.ts';

/**
 * Tokenizer, generation settings, licence, and the code that `auto_map` names (in tokenizer_config.json, too): what belongs
 * to a checkpoint beside config and weights.
 */
export const SIDE_FILES = /\.(json|txt|model|jinja|tiktoken|py)$|^(LICENSE|NOTICE)/i;
const MAX_BYTES = 256 * 1024 ** 2;

/** Copies the tokenizer's and other small files of a checkpoint. The model card stays: it describes the source. */
export async function copySideFiles(from: string, to: string): Promise<void> {
  for (const name of await readdir(from)) {
    if (!SIDE_FILES.test(name) || name === CONFIG_FILE || name.endsWith('.index.json')) continue;
    const path = join(from, name);
    await attempt('copy', path, async () => {
      const stats = await stat(path);
      if (stats.isFile() && stats.size <= MAX_BYTES) await copyFile(path, join(to, name));
    });
  }
}

/** Writes config.json; what it has in common with the source's stays as it is written there, to the digit. */
export async function writeConfig(source: string, folder: string, config: JsonObject): Promise<void> {
  const from = join(source, CONFIG_FILE);
  const text = await attempt('read', from, () => readFile(from, 'utf8'));
  await writeText(join(folder, CONFIG_FILE), stringifyLike(text, config));
}

/** Writes the index of a sharded checkpoint. */
export async function writeIndex(
  folder: string,
  weightMap: ReadonlyMap<string, string>,
  totalSize: number,
): Promise<void> {
  const sorted = [...weightMap].sort(([a], [b]) => (a < b ? -1 : 1));
  await writeJson(join(folder, INDEX_FILE), {
    metadata: { total_size: totalSize },
    weight_map: Object.fromEntries(sorted),
  });
}

async function writeJson(path: string, value: unknown): Promise<void> {
  await writeText(path, `${JSON.stringify(value, null, 2)}\n`);
}

function writeText(path: string, text: string): Promise<void> {
  return attempt('write', path, () => writeFile(path, text));
}

import { join } from 'node:path';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { isFile, readJsonObject } from '../checkpoint/files.ts';
import type { JsonObject } from '../checkpoint/json.ts';

const MAX_BYTES = 16 * 1024 ** 2;

/**
 * The tokens that end a text: `eos_token_id` of config.json, and of generation_config.json, where chat models have the end of
 * a turn.
 *
 * @throws BAD_CHECKPOINT for a generation_config.json that is no JSON object.
 */
export async function readEndTokens({ path, config }: Checkpoint): Promise<ReadonlySet<number>> {
  return new Set([...endTokens(config), ...endTokens(await readGenerationConfig(path))]);
}

/** `eos_token_id`: a number, a list of them, or nothing. */
function endTokens({ eos_token_id: value }: JsonObject): number[] {
  const list: unknown[] = Array.isArray(value) ? value : [value];
  return list.filter((id) => typeof id === 'number');
}

async function readGenerationConfig(folder: string): Promise<JsonObject> {
  const path = join(folder, 'generation_config.json');
  return (await isFile(path)) ? readJsonObject(path, MAX_BYTES) : {};
}

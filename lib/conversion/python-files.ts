import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ioError } from '../checkpoint/files.ts';
import type { JsonObject } from '../checkpoint/json.ts';
import { PACKAGE_ROOT } from '../package.ts';

/** In `python/` of this package. */
const FILES = ['configuration_molae.py', 'modeling_molae.py'];

/** Writes the modules with which transformers loads the latent format (trust_remote_code). */
export async function copyPythonFiles(to: string): Promise<void> {
  for (const name of FILES) {
    const from = join(PACKAGE_ROOT, 'python', name);
    try {
      await copyFile(from, join(to, name));
    } catch (cause) {
      throw ioError('copy', from, cause);
    }
  }
}

/** A config that names these modules. */
export function withAutoMap(config: JsonObject): JsonObject {
  return {
    ...config,
    auto_map: {
      AutoConfig: 'configuration_molae.MolaeConfig',
      AutoModelForCausalLM: 'modeling_molae.MolaeForCausalLM',
    },
  };
}

import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { JsonObject } from '../checkpoint/json.ts';
import { attempt } from '../files.ts';
import { PACKAGE_ROOT } from '../package.ts';

/** In `python/` of this package. */
const FILES = ['configuration_molae.py', 'modeling_molae.py'];

/** Writes the modules with which transformers loads the latent format (trust_remote_code). */
export async function copyPythonFiles(to: string): Promise<void> {
  for (const name of FILES) {
    const from = join(PACKAGE_ROOT, 'python', name);
    await attempt('copy', from, () => copyFile(from, join(to, name)));
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

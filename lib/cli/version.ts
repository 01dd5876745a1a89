import { readFileSync } from 'node:fs';

/** The folder of the package; this file is two folders below it, as source and as built. */
export const PACKAGE_ROOT = new URL('../../', import.meta.url);

export function packageVersion(): string {
  const { version } = JSON.parse(readFileSync(new URL('package.json', PACKAGE_ROOT), 'utf8')) as {
    version: string;
  };
  return version;
}

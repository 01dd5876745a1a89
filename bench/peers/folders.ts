import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../lib/package.ts';
import { Failure } from '../support/failure.ts';

/** Sources of peers, and their packages, stay here. */
export const PEERS = join(PACKAGE_ROOT, 'bench', 'peers');

/** Where a package of a peer is. Throws a Failure where it is not installed. */
export function peerPackage(name: string): string {
  const folder = join(PEERS, 'node_modules', name);
  if (!existsSync(folder)) throw new Failure(`${name} is not installed`);
  return folder;
}

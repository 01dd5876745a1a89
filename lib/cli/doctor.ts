import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { type DeviceInfo, openDevice } from '../device.ts';
import { native } from '../native.ts';
import type { CommandDefinition } from './command.ts';
import { bytes, properties, wrap } from './table.ts';
import { PACKAGE_ROOT, packageVersion } from './version.ts';

interface Diagnosis {
  readonly version: string;
  readonly platform: string;
  readonly node: string;
  readonly addon: {
    readonly loaded: boolean;
    readonly version: string | null;
    readonly path: string | null;
    readonly reason: string | null;
  };
  readonly backends: readonly Backend[];
}

interface Backend {
  readonly name: string;
  readonly available: boolean;
  /** Why not. */
  readonly reason: string | null;
  readonly devices: readonly DeviceInfo[];
}

export const doctor: CommandDefinition = {
  name: 'doctor',
  positionals: [],
  summary: 'what works on this machine: addon, devices',
  description: [
    'Loads the native addon and tries every kind of device. Says what is there, and of what is missing, why. The exit status is 0 also when something is missing.',
  ],
  options: [],
  examples: [
    ['doctor', 'what works here?'],
    [`doctor --json | jq '.backends[] | select(.available) | .name'`, 'for scripts'],
  ],
  async run(_, output) {
    const diagnosis = await examine();
    output.result(diagnosis, () => describe(diagnosis, output.width));
  },
};

async function examine(): Promise<Diagnosis> {
  const addon = examineAddon();
  return {
    version: packageVersion(),
    platform: `${process.platform}-${process.arch}`,
    node: process.version,
    addon,
    backends: [await examineBackend('cpu', addon.reason), await examineBackend('cuda', addon.reason)],
  };
}

function examineAddon(): Diagnosis['addon'] {
  try {
    const { version } = native();
    return { loaded: true, version, path: addonPath(), reason: null };
  } catch (error) {
    return { loaded: false, version: null, path: addonPath(), reason: message(error) };
  }
}

/** The file that node-gyp-build picks; null when there is none. */
function addonPath(): string | null {
  const nodeGypBuild = createRequire(import.meta.url)('node-gyp-build') as { path(root: string): string };
  try {
    return nodeGypBuild.path(fileURLToPath(PACKAGE_ROOT));
  } catch {
    return null;
  }
}

async function examineBackend(name: string, addonReason: string | null): Promise<Backend> {
  if (addonReason !== null) {
    return { name, available: false, reason: 'The native addon is not loaded', devices: [] };
  }
  const devices: DeviceInfo[] = [];
  // More than any machine has; each index is tried until one is missing.
  while (devices.length < 64) {
    try {
      using device = await openDevice(name === 'cpu' ? name : `${name}:${devices.length}`);
      devices.push(device.info);
      if (name === 'cpu') break;
    } catch (error) {
      // After the last device; or at the first one, and then this is why.
      const available = devices.length > 0;
      return { name, available, reason: available ? null : message(error), devices };
    }
  }
  return { name, available: true, reason: null, devices };
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function describe({ version, platform, node, addon, backends }: Diagnosis, width: number): string[] {
  const lines = properties([
    ['molae', version],
    ['Platform', platform],
    ['Node.js', node],
    ['Addon', addon.loaded ? `${addon.version}, ${addon.path}` : 'not loaded'],
  ]);
  if (addon.reason !== null) lines.push(...addon.reason.split('\n').map((line) => `  ${line}`));
  if (addon.loaded && addon.version !== version) {
    lines.push(`  The addon is of another version than the rest: rebuild it with "npm run build:native".`);
  }
  for (const { name, available, reason, devices } of backends) {
    lines.push('', `${name}: ${available ? 'available' : 'not available'}`);
    if (reason !== null)
      lines.push(
        ...reason
          .split('\n')
          .flatMap((line) => wrap(line, width - 2))
          .map(indent),
      );
    for (const device of devices) {
      lines.push(
        ...properties([
          ['Device', `${device.kind}:${device.index} ${device.name}`],
          ['Features', device.features.join(', ') || 'none'],
          ['Threads', String(device.threads)],
          ['Memory', bytes(device.memoryBytes)],
          ['Library', device.library],
        ]).map(indent),
      );
    }
  }
  return lines;
}

function indent(line: string): string {
  return `  ${line}`;
}

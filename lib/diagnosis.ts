import { createRequire } from 'node:module';
import { type DeviceInfo, openDevice } from './device.ts';
import { native } from './native.ts';
import { PACKAGE_ROOT, packageVersion } from './package.ts';

/** What works on this machine, and why something does not. */
export interface Diagnosis {
  readonly version: string;
  readonly platform: string;
  readonly node: string;
  readonly addon: {
    readonly loaded: boolean;
    readonly version: string | null;
    readonly path: string | null;
    readonly reason: string | null;
  };
  readonly backends: readonly BackendDiagnosis[];
}

/** Whether a kind of device works here, and what was found of it. */
export interface BackendDiagnosis {
  readonly name: string;
  readonly available: boolean;
  /** Why not. */
  readonly reason: string | null;
  readonly devices: readonly DeviceInfo[];
  /** What was looked for: the driver, its devices, and each library with the places that were tried. */
  readonly found: {
    readonly driver: string | null;
    readonly devices: readonly string[];
    readonly libraries: readonly string[];
    readonly tried: readonly string[];
  };
}

/** Loads the addon and tries every kind of device; what `molae doctor` prints. Never throws for what is missing. */
export async function diagnose(): Promise<Diagnosis> {
  const addon = diagnoseAddon();
  return {
    version: packageVersion(),
    platform: `${process.platform}-${process.arch}`,
    node: process.version,
    addon,
    backends: [await diagnoseBackend('cpu', addon.loaded), await diagnoseBackend('cuda', addon.loaded)],
  };
}

function diagnoseAddon(): Diagnosis['addon'] {
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
    return nodeGypBuild.path(PACKAGE_ROOT);
  } catch {
    return null;
  }
}

async function diagnoseBackend(name: 'cpu' | 'cuda', addonLoaded: boolean): Promise<BackendDiagnosis> {
  const nothing = { driver: null, devices: [], libraries: [], tried: [] };
  if (!addonLoaded) {
    return {
      name,
      available: false,
      reason: 'The native addon is not loaded',
      devices: [],
      found: nothing,
    };
  }
  const found = name === 'cpu' ? nothing : probe(name);
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
      return { name, available, reason: available ? null : message(error), devices, found };
    }
  }
  return { name, available: true, reason: null, devices, found };
}

function probe(kind: string): BackendDiagnosis['found'] {
  const { details } = native().probeBackend(kind);
  const all = (key: string) => details.filter(([name]) => name === key).map(([, value]) => value);
  return {
    driver: all('driver')[0] ?? null,
    devices: all('device'),
    libraries: all('library'),
    tried: all('tried'),
  };
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

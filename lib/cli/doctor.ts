import { type Diagnosis, diagnose } from '../diagnosis.ts';
import type { CommandDefinition } from './command.ts';
import { bytes, properties, wrap } from './table.ts';

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
    const diagnosis = await diagnose();
    output.result(diagnosis, () => describe(diagnosis, output.width));
  },
};

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
  for (const { name, available, reason, devices, found } of backends) {
    lines.push('', `${name}: ${available ? 'available' : 'not available'}`);
    if (reason !== null)
      lines.push(
        ...reason
          .split('\n')
          .flatMap((line) => wrap(line, width - 2))
          .map(indent),
      );
    if (found.driver !== null) lines.push(indent(`Driver: ${found.driver}`));
    for (const gpu of found.devices) lines.push(indent(`GPU ${gpu}`));
    for (const library of found.libraries) lines.push(indent(`Library: ${library}`));
    if (!available) for (const place of found.tried) lines.push(indent(`Tried: ${place}`));
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

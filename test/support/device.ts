import { type Device, openDevice } from '../../lib/device.ts';

/** The device under test: the CPU, or what MOLAE_TEST_DEVICE names (`npm run test:gpu`). */
export function openTestDevice(): Promise<Device> {
  return openDevice(process.env.MOLAE_TEST_DEVICE ?? 'cpu');
}

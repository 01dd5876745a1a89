import { type Device, type DeviceOptions, openDevice } from '../../lib/device.ts';

/** The device under test: the CPU, or what MOLAE_TEST_DEVICE names (`npm run test:gpu`). */
export function openTestDevice(options: DeviceOptions = {}): Promise<Device> {
  return openDevice(process.env.MOLAE_TEST_DEVICE ?? 'cpu', options);
}

/**
 * A CPU device that nothing else in the process uses, to count memory on: on a shared one the garbage collector may free
 * other tests' tensors at any allocation.
 */
export function openOwnDevice(): Promise<Device> {
  return openTestDevice({ threads: 3 });
}

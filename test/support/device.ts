import { type Device, type DeviceOptions, openDevice } from '../../lib/device.ts';

/** The device under test: the CPU, or what MOLAE_TEST_DEVICE names (`npm run test:gpu`). */
export function openTestDevice(options: DeviceOptions = {}): Promise<Device> {
  return openDevice(process.env.MOLAE_TEST_DEVICE ?? 'cpu', options);
}

/**
 * How far results of some tokens that went through experts with bf16 or f16 weights may be from the truth, together. A GPU's tensor cores round
 * their inputs to that dtype, and now and then a token with two almost equally good experts goes to the other one.
 */
export function expertsTolerance(device: Device, onCpu: number): number {
  return device.kind === 'cuda' ? 0.1 : onCpu;
}

/** What `call` gives once its device is done: a GPU tells what its kernels found wrong only when it is waited for. */
export async function settled<Result>(device: Device, call: Promise<Result>): Promise<Result> {
  const result = await call;
  await device.synchronize();
  return result;
}

/**
 * A CPU device that nothing else in the process uses, to count memory on: on a shared one the garbage collector may free
 * other tests' tensors at any allocation.
 */
export function openOwnDevice(): Promise<Device> {
  return openTestDevice({ threads: 3 });
}

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';

// The CUDA library as a file, and what it says on a machine without a (good) driver. None of this needs a GPU.

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const folder = ['build/Release', 'build']
  .map((name) => join(root, name))
  .find((name) => existsSync(join(name, 'libmolae_cuda.so')) && existsSync(join(name, 'molae.node')));
const has = (tool: string) => {
  try {
    execFileSync(tool, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};

describe.skipIf(!folder)('libmolae_cuda.so', () => {
  const library = join(folder ?? '', 'libmolae_cuda.so');
  const scratch = mkdtempSync(join(tmpdir(), 'molae-cuda-'));
  afterAll(() => rmSync(scratch, { recursive: true, force: true }));

  it('has a few megabytes', () => {
    expect(statSync(library).size).toBeLessThan(8 << 20);
  });

  it.skipIf(!has('nm'))('exports its entry and nothing else', () => {
    const symbols = execFileSync('nm', ['-D', '--defined-only', library], { encoding: 'utf8' });
    expect(
      symbols
        .trim()
        .split('\n')
        .map((line) => line.split(' ').at(-1)),
    ).toEqual(['molae_cuda_entry']);
  });

  it.skipIf(!has('readelf'))('needs no CUDA library to load', () => {
    const dynamic = execFileSync('readelf', ['-d', library], { encoding: 'utf8' });
    const needed = [...dynamic.matchAll(/NEEDED.*\[(.*)\]/g)].map((match) => match[1]);
    expect(needed).toContain('libc.so.6');
    expect(needed.filter((name) => /cuda|cublas|cusolver|cusparse/.test(name ?? ''))).toEqual([]);
  });

  /** The error of opening a GPU in a fresh process whose driver, if any, is the one in `drivers`. */
  function open(index: number, drivers?: string): { code: string; message: string } {
    const script = `
      const addon = require(${JSON.stringify(join(folder ?? '', 'molae.node'))});
      try { addon.openDevice('cuda', ${index}, 0); console.log('{"code":"NONE"}'); }
      catch (error) { console.log(JSON.stringify({ code: error.code, message: error.message })); }`;
    const env = { ...process.env, ...(drivers ? { LD_LIBRARY_PATH: drivers } : {}) };
    return JSON.parse(execFileSync(process.execPath, ['-e', script], { encoding: 'utf8', env }));
  }

  /** A libcuda.so.1 that only tells its version. */
  function fakeDriver(version: number): string {
    const source = join(scratch, `driver${version}.c`);
    const to = mkdtempSync(join(scratch, 'driver-'));
    writeFileSync(source, `int cuDriverGetVersion(int *version) { *version = ${version}; return 0; }\n`);
    execFileSync('cc', ['-shared', '-fPIC', '-o', join(to, 'libcuda.so.1'), source]);
    return to;
  }

  const driver = existsSync('/proc/driver/nvidia');
  it.skipIf(driver)('says that there is no driver', () => {
    expect(open(0)).toMatchObject({
      code: 'DEVICE_UNAVAILABLE',
      message: expect.stringContaining('no NVIDIA driver: libcuda.so.1'),
    });
  });

  it("looks for NVIDIA's wheels in the virtual environment that PATH begins with", () => {
    const environment = join(scratch, 'environment');
    const site = join(environment, 'lib', 'python3.12', 'site-packages', 'nvidia', 'cu13', 'lib');
    for (const made of [join(environment, 'bin'), site]) mkdirSync(made, { recursive: true });
    symlinkSync(process.execPath, join(environment, 'bin', 'python3')); // as a link to what is elsewhere, like any
    writeFileSync(join(environment, 'pyvenv.cfg'), '');
    writeFileSync(join(site, 'libcublasLt.so.13'), 'no library');
    const script = `
      const addon = require(${JSON.stringify(join(folder ?? '', 'molae.node'))});
      console.log(JSON.stringify(addon.probeBackend('cuda').details));`;
    const { VIRTUAL_ENV: _, ...env } = process.env;
    const details: [string, string][] = JSON.parse(
      execFileSync(process.execPath, ['-e', script], {
        encoding: 'utf8',
        env: { ...env, PATH: `${join(environment, 'bin')}:${process.env.PATH}` },
      }),
    );
    const tried = details.filter(([key]) => key === 'tried').map(([, place]) => place);
    const found = tried.find((place) => /environment.*libcublasLt/.test(place));
    expect(found, tried.join('\n')).toMatch(/too short|invalid ELF/);
  });

  it.skipIf(!has('cc'))('says that the driver is too old', () => {
    const error = open(0, fakeDriver(12080));
    expect(error.code).toBe('DEVICE_UNAVAILABLE');
    expect(error.message).toContain('knows CUDA 12.8');
    expect(error.message).toContain('driver 580 or newer');
  });

  it.skipIf(!has('cc'))('survives a driver that lacks everything else', () => {
    expect(open(0, fakeDriver(13000)).code).toBe('DEVICE_UNAVAILABLE');
  });
});

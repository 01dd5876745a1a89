import { MolaeError } from '../../errors.ts';
import { SafetensorsFile } from './reader.ts';

interface Slot {
  readonly opening: Promise<SafetensorsFile>;
  users: number;
}

/**
 * Open safetensors files, at most `limit` at a time: a checkpoint may have more shards than a process may have
 * files. The file that was not used for the longest time is closed to make room, never one in use.
 */
export class FilePool {
  readonly #limit: number;
  /** In the order of last use, oldest first. */
  readonly #slots = new Map<string, Slot>();
  /** Handles held, those being closed included. */
  #held = 0;
  #waiting: (() => void)[] = [];
  #closed = false;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** How many files are open now. */
  get open(): number {
    return this.#held;
  }

  /** Runs `task` on the file, which stays open until the task settles. */
  async use<Result>(path: string, task: (file: SafetensorsFile) => Promise<Result>): Promise<Result> {
    const slot = await this.#acquire(path);
    try {
      return await task(await slot.opening);
    } finally {
      await this.#release(path, slot);
    }
  }

  /** Closes all files. A task in flight completes its current read or is refused with DISPOSED. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#wakeAll();
    const slots = [...this.#slots.values()];
    this.#slots.clear();
    await Promise.all(slots.map((slot) => this.#shut(slot)));
  }

  async #acquire(path: string): Promise<Slot> {
    for (;;) {
      if (this.#closed) throw new MolaeError('DISPOSED', `${path} cannot be read: its checkpoint is closed`);
      const known = this.#slots.get(path);
      if (known !== undefined) return this.#reuse(path, known);
      if (this.#held < this.#limit) return this.#open(path);
      await this.#makeRoom();
    }
  }

  #reuse(path: string, slot: Slot): Slot {
    this.#slots.delete(path);
    this.#slots.set(path, slot);
    slot.users++;
    return slot;
  }

  #open(path: string): Slot {
    const slot: Slot = { opening: SafetensorsFile.open(path), users: 1 };
    this.#held++;
    this.#slots.set(path, slot);
    return slot;
  }

  /** Closes the idle file used longest ago or, where none is idle, waits for a change. */
  async #makeRoom(): Promise<void> {
    const idle = [...this.#slots].find(([, slot]) => slot.users === 0);
    if (idle === undefined) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
      return;
    }
    const [path, slot] = idle;
    this.#slots.delete(path);
    await this.#shut(slot);
  }

  async #release(path: string, slot: Slot): Promise<void> {
    slot.users--;
    const failed = await slot.opening.then(
      () => false,
      () => true,
    );
    // A file that could not be opened is tried afresh next time; it may have been mended by then.
    if (failed && this.#slots.get(path) === slot) {
      this.#slots.delete(path);
      await this.#shut(slot);
    }
    this.#wakeAll();
  }

  async #shut(slot: Slot): Promise<void> {
    try {
      await slot.opening.then(
        (file) => file.close(),
        () => {},
      );
    } finally {
      this.#held--;
      this.#wakeAll();
    }
  }

  #wakeAll(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }
}

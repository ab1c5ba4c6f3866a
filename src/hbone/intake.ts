import { commonSlab, RECORD_BYTES, RECORD_ROOM_BYTES, retireSlab, SLAB_BYTES, takeSlab, type Slab } from "./buffers.ts";
import { turn } from "./turn.ts";

/** So many reads that nobody points into after a large one, and a session reads into the common slab again. */
const BUSY_READS = 64;

/**
 * What a session reads into: the thread's common slab, or one of its own while so much comes that copying it would cost: not
 * many small frames, which go on at once. A slab that tunnels still point into when it is full is left to them, and another
 * one taken.
 */
export class Intake {
  slab: Slab = commonSlab;
  /** Where in the slab the next read begins. */
  position = 0;
  /** Slabs that only tunnels hold. */
  pinnedSlabs = 0;
  #busyReads = 0;

  /** After a read of `count` bytes was dealt with: the buffer for the next, undefined for the same place again. */
  next(count: number): Uint8Array | undefined {
    const { slab } = this;
    if (slab === commonSlab) return this.#commonRead();
    if (slab.refs === 0) return this.#smallRead();
    if (count >= RECORD_BYTES) this.#busyReads = BUSY_READS;
    this.position += count;
    if (SLAB_BYTES - this.position >= RECORD_ROOM_BYTES) return slab.bytes.subarray(this.position);
    if (slab.refs > 0) turn.flushPlain();
    if (this.slab !== slab) return undefined; // the session ended meanwhile
    if (slab.refs === 0) return this.#goTo(slab);
    retireSlab(slab);
    return this.#goTo(takeSlab(this));
  }

  /** Nothing comes: the buffer for the next read, undefined for the same. */
  quiet(): Uint8Array | undefined {
    if (this.slab === commonSlab) return undefined;
    retireSlab(this.slab);
    return this.#goTo(commonSlab);
  }

  /** Nothing is read any more. */
  close(): void {
    if (this.slab !== commonSlab) retireSlab(this.slab);
    this.slab = commonSlab;
  }

  #commonRead(): Uint8Array | undefined {
    const { copied } = commonSlab;
    commonSlab.copied = 0;
    if (copied < RECORD_BYTES / 2) return undefined;
    this.#busyReads = BUSY_READS;
    return this.#goTo(takeSlab(this));
  }

  #smallRead(): Uint8Array | undefined {
    this.#busyReads--;
    return this.#busyReads > 0 ? undefined : this.quiet();
  }

  #goTo(slab: Slab): Uint8Array {
    this.slab = slab;
    this.position = 0;
    return slab.bytes;
  }
}

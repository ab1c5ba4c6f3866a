import type { Clock } from "#base/clock";

/** Memory outside the pool that Node shares between small buffers: its address stays, its whole belongs to us. */
export function allocate(byteCount: number): Uint8Array {
  const buffer = Buffer.allocUnsafeSlow(byteCount);
  return new Uint8Array(buffer.buffer, 0, byteCount);
}

/** Blocks that were given back, by size. Bounded: nobody keeps more than a load has needed at a time. */
const freeBlocks = new Map<number, Uint8Array[]>();
const BLOCKS_KEPT_BYTES = 1 << 20;
let keptBytes = 0;

/** A block of at least `byteCount`: a power of two, so that it fits whoever comes next. */
export function takeBlock(byteCount: number): Uint8Array {
  const size = 2 ** (32 - Math.clz32(byteCount - 1));
  const block = freeBlocks.get(size)?.pop();
  if (block === undefined) return allocate(size);
  keptBytes -= size;
  return block;
}

/** Takes a block of `takeBlock` back. Nobody may use it any more. */
export function giveBlock(block: Uint8Array): void {
  if (keptBytes + block.length > BLOCKS_KEPT_BYTES) return;
  keptBytes += block.length;
  const others = freeBlocks.get(block.length);
  if (others === undefined) freeBlocks.set(block.length, [block]);
  else others.push(block);
}

/** One read buffer for all plain sockets that are not busy: their bytes are copied out inside the read callback. */
export const SHARED_BYTES = 64 * 1024;
export const sharedBuffer = allocate(SHARED_BYTES);

/** Room in front of bulk bytes, for the frame header and what else leaves in the same write. */
const HEADROOM_BYTES = 4096;
const BULK_BYTES = 1 << 20;
/** How many sockets of a thread may have buffers of their own at a time: 2 MiB each. */
const BULK_HOLDERS = 16;
const BULK_KEPT = 8;
/** Of those, this many stay while nobody is busy: whoever moves much in portions is busy again soon. */
const BULK_RESTING = 2;
/** A holder that has read nothing for this long gives its buffers back. */
const BULK_IDLE_MS = 1000;

/**
 * Bytes of a plain socket on their way into a session: `bytes[offset .. offset + count]`. What lies before `offset` may
 * be overwritten. Reading goes on at `position`, right behind the bytes.
 */
export class Piece {
  readonly bytes: Uint8Array;
  /** Where the first read goes. */
  readonly start: number;
  readonly view: Uint8Array;
  offset: number;
  count = 0;
  position: number;

  constructor(bytes: Uint8Array, start: number) {
    this.bytes = bytes;
    this.start = start;
    this.view = start === 0 ? bytes : bytes.subarray(start);
    this.offset = start;
    this.position = start;
  }

  /** Forgets everything: the next read goes to the start. */
  rewind(): void {
    this.offset = this.start;
    this.position = this.start;
    this.count = 0;
  }
}

/** Who holds bulk buffers. */
export interface BulkHolder {
  /** Asked when nothing was read for a while: give the buffers back (`bulkBuffers.release`) if nothing is in them. */
  onBulkIdle(): void;
  /** Set to true at each read, to false by the sweep. */
  bulkBusy: boolean;
}

/** The bulk buffers of a thread: two per busy socket, so that one is read into while the other is sent. */
class BulkBuffers {
  readonly #free: Piece[] = [];
  readonly #holders = new Set<BulkHolder>();
  #cancelSweep: (() => void) | undefined;

  /** Two pieces, or undefined when too many sockets have theirs: the socket then goes on with the shared buffer. */
  take(holder: BulkHolder, clock: Clock): [Piece, Piece] | undefined {
    if (this.#holders.size >= BULK_HOLDERS) return undefined;
    this.#holders.add(holder);
    this.#armSweep(clock);
    return [this.#takeOne(), this.#takeOne()];
  }

  /** Takes the pieces back. The caller must not touch them again, nor may its socket read into them. */
  release(holder: BulkHolder, pieces: readonly Piece[]): void {
    if (!this.#holders.delete(holder)) return;
    for (const piece of pieces) {
      piece.rewind();
      if (this.#free.length < BULK_KEPT) this.#free.push(piece);
    }
    if (this.#holders.size === 0) {
      this.#cancelSweep?.();
      this.#cancelSweep = undefined;
      this.#free.length = Math.min(this.#free.length, BULK_RESTING);
    }
  }

  get holders(): number {
    return this.#holders.size;
  }

  #takeOne(): Piece {
    return this.#free.pop() ?? new Piece(allocate(HEADROOM_BYTES + BULK_BYTES), HEADROOM_BYTES);
  }

  #armSweep(clock: Clock): void {
    this.#cancelSweep ??= clock.after(BULK_IDLE_MS, () => {
      this.#cancelSweep = undefined;
      for (const holder of this.#holders) {
        if (holder.bulkBusy) holder.bulkBusy = false;
        else holder.onBulkIdle();
      }
      if (this.#holders.size > 0) this.#armSweep(clock);
    });
  }
}

export const bulkBuffers = new BulkBuffers();

/** What sessions read into; tunnels point into it until their bytes are with the kernel. */
export const SLAB_BYTES = 256 * 1024;
const SLABS_KEPT = 16;
/**
 * Blocks of copied bytes for a tunnel whose socket takes nothing: each next one is of the next size.
 * The first is small: each new connection that sends at once needs one while its application is dialled, and where many come at a
 * time, blocks leave holes.
 */
const LOOSE_SIZES = [
  { bytes: 512, kept: 256 },
  { bytes: 4 * 1024, kept: 64 },
  { bytes: 64 * 1024, kept: 16 },
].map((size) => ({ ...size, free: [] as Slab[] }));

/** A full record: a peer that sends as much at a time sends much. */
export const RECORD_BYTES = 16 * 1024;
/** What is asked for at the end of a slab: a record with its type and some padding. */
export const RECORD_ROOM_BYTES = RECORD_BYTES + 256;

/** Counted memory of received bytes. */
export class Slab {
  readonly bytes: Uint8Array;
  /** How many tunnels point into it. */
  refs = 0;
  /** The session that reads into it (or read last), for its count of pinned slabs. */
  pinner: { pinnedSlabs: number } | undefined;
  /** A block of copied bytes: filled up to here. */
  used = 0;
  /** How many bytes tunnels have copied out of it instead of pointing into it. */
  copied = 0;
  readonly loose: boolean;
  retired = false;

  constructor(bytes: Uint8Array, loose: boolean) {
    this.bytes = bytes;
    this.loose = loose;
  }
}

const freeSlabs: Slab[] = [];

/**
 * What all sessions of the thread read into that are not busy: nobody may point into it, bytes that stay are copied out
 * inside the read callback.
 */
export const commonSlab = new Slab(allocate(SHARED_BYTES), false);

/** A slab for a session to read into. */
export function takeSlab(pinner: { pinnedSlabs: number }): Slab {
  const slab = freeSlabs.pop() ?? new Slab(allocate(SLAB_BYTES), false);
  slab.pinner = pinner;
  slab.retired = false;
  return slab;
}

/** A block for copied bytes: at least `byteCount`. `after`: how large the tunnel's last one was. */
export function takeLoose(byteCount: number, after = 0): Slab {
  const fits = ({ bytes }: { bytes: number }): boolean => bytes >= byteCount; // none does: a block that is not kept
  const size = LOOSE_SIZES.find((one) => one.bytes > after && fits(one)) ?? LOOSE_SIZES.findLast(fits);
  return size?.free.pop() ?? new Slab(allocate(size?.bytes ?? byteCount), true);
}

/** The session reads elsewhere from now on. */
export function retireSlab(slab: Slab): void {
  slab.retired = true;
  if (slab.refs === 0) recycle(slab);
  else if (slab.pinner !== undefined) slab.pinner.pinnedSlabs++;
}

/** A tunnel has done with its bytes in a slab. */
export function releaseSlab(slab: Slab): void {
  slab.refs--;
  if (slab.refs > 0) return;
  if (slab.loose) recycleLoose(slab);
  if (!slab.retired) return;
  if (slab.pinner !== undefined) slab.pinner.pinnedSlabs--;
  recycle(slab);
}

/** Nobody points into the block, so nobody will append to it either. */
function recycleLoose(slab: Slab): void {
  slab.used = 0;
  const size = LOOSE_SIZES.find(({ bytes }) => bytes === slab.bytes.length);
  if (size !== undefined && size.free.length < size.kept) size.free.push(slab);
}

function recycle(slab: Slab): void {
  slab.pinner = undefined;
  if (freeSlabs.length < SLABS_KEPT) freeSlabs.push(slab);
}

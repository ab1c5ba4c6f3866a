const FIRST_CAPACITY = 1024;
const NONE = -1;

/**
 * Numbers by hash; several may share one. Chains in typed arrays: some hundred thousand entries cost 16 bytes each and no
 * object, and nothing for the garbage collector to walk through.
 */
export class HashIndex {
  /** The first entry of each chain. */
  #buckets = filled(FIRST_CAPACITY);
  #hashes = new Int32Array(FIRST_CAPACITY);
  #values = new Int32Array(FIRST_CAPACITY);
  #next = filled(FIRST_CAPACITY);
  #used = 0;
  #free = NONE;

  /** Adds an entry. */
  add(hash: number, value: number): void {
    if (this.#free === NONE && this.#used === this.#hashes.length) this.#grow();
    let entry = this.#free;
    if (entry === NONE) entry = this.#used++;
    else this.#free = this.#next[entry] ?? NONE;
    const bucket = hash & (this.#buckets.length - 1);
    this.#hashes[entry] = hash;
    this.#values[entry] = value;
    this.#next[entry] = this.#buckets[bucket] ?? NONE;
    this.#buckets[bucket] = entry;
  }

  /** Removes one entry of this hash and value, if there is any. */
  remove(hash: number, value: number): void {
    const bucket = hash & (this.#buckets.length - 1);
    let before = NONE;
    for (let entry = this.#buckets[bucket] ?? NONE; entry !== NONE; entry = this.#next[entry] ?? NONE) {
      if (this.#hashes[entry] === hash && this.#values[entry] === value) {
        const after = this.#next[entry] ?? NONE;
        if (before === NONE) this.#buckets[bucket] = after;
        else this.#next[before] = after;
        this.#next[entry] = this.#free;
        this.#free = entry;
        return;
      }
      before = entry;
    }
  }

  /** The newest entry of this hash, or -1. Entries are good until something is added or removed. */
  first(hash: number): number {
    return this.#skip(this.#buckets[hash & (this.#buckets.length - 1)] ?? NONE, hash);
  }

  /** The entry of this hash after `entry`, or -1. */
  after(entry: number, hash: number): number {
    return this.#skip(this.#next[entry] ?? NONE, hash);
  }

  /** What was added with an entry. */
  value(entry: number): number {
    return this.#values[entry] ?? NONE;
  }

  #skip(start: number, hash: number): number {
    let entry = start;
    while (entry !== NONE && this.#hashes[entry] !== hash) entry = this.#next[entry] ?? NONE;
    return entry;
  }

  /** Doubles; all entries are in use then. */
  #grow(): void {
    const capacity = this.#hashes.length * 2;
    this.#hashes = larger(this.#hashes, capacity);
    this.#values = larger(this.#values, capacity);
    this.#next = filled(capacity);
    this.#buckets = filled(capacity);
    for (let entry = 0; entry < this.#used; entry++) {
      const bucket = (this.#hashes[entry] ?? 0) & (capacity - 1);
      this.#next[entry] = this.#buckets[bucket] ?? NONE;
      this.#buckets[bucket] = entry;
    }
  }
}

function filled(length: number): Int32Array<ArrayBuffer> {
  return new Int32Array(length).fill(NONE);
}

function larger(from: Int32Array, length: number): Int32Array<ArrayBuffer> {
  const to = new Int32Array(length);
  to.set(from);
  return to;
}

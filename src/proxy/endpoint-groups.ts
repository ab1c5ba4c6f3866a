import type { Workload } from "#model/workload";

/** Endpoints that are kept in lists of objects, over all services. */
const MOST_LISTED = 65_536;

interface Group {
  /** Numbers of addresses; the first `count` count. */
  ids: Int32Array<ArrayBuffer>;
  count: number;
  /** What was asked for last, while nothing has changed. */
  listed: { readonly service: string; readonly workloads: readonly Workload[] } | undefined;
}

/** The endpoints of each service, as numbers of addresses, by the hash of the service's name. */
export class EndpointGroups {
  readonly #groups = new Map<number, Group>();
  readonly #listed = new Set<Group>();
  #listedCount = 0;

  /** An address becomes an endpoint. */
  join(hash: number, id: number): void {
    let group = this.#groups.get(hash);
    if (group === undefined) {
      group = { ids: new Int32Array(4), count: 0, listed: undefined };
      this.#groups.set(hash, group);
    }
    this.#unlist(group);
    if (group.count === group.ids.length) {
      const ids = new Int32Array(group.count * 2);
      ids.set(group.ids);
      group.ids = ids;
    }
    group.ids[group.count++] = id;
  }

  /** An address is an endpoint no more. */
  leave(hash: number, id: number): void {
    const group = this.#groups.get(hash);
    const at = group?.ids.subarray(0, group.count).indexOf(id) ?? -1;
    if (group === undefined || at < 0) return;
    this.#unlist(group);
    group.ids[at] = group.ids[--group.count] ?? 0;
    if (group.count === 0) this.#groups.delete(hash);
  }

  /** An endpoint is described otherwise than before. */
  changed(hash: number): void {
    const group = this.#groups.get(hash);
    if (group !== undefined) this.#unlist(group);
  }

  /** The endpoints of a service, in a list that is kept until something changes. `decode` leaves out what is none of it. */
  list(hash: number, service: string, decode: (id: number) => Workload | undefined): readonly Workload[] {
    const group = this.#groups.get(hash);
    if (group === undefined) return [];
    if (group.listed?.service === service) return group.listed.workloads; // two may have the same hash
    this.#unlist(group);
    const workloads = [...group.ids.subarray(0, group.count)].flatMap((id) => decode(id) ?? []);
    if (this.#listedCount + workloads.length > MOST_LISTED) for (const other of this.#listed) this.#unlist(other);
    group.listed = { service, workloads };
    this.#listed.add(group);
    this.#listedCount += workloads.length;
    return workloads;
  }

  /** The addresses of one hash, now. */
  members(hash: number): Int32Array {
    const group = this.#groups.get(hash);
    return group === undefined ? new Int32Array(0) : group.ids.slice(0, group.count);
  }

  /** Hashes, each with its addresses. */
  *entries(): Generator<readonly [number, Int32Array]> {
    for (const [hash, { ids, count }] of this.#groups) yield [hash, ids.subarray(0, count)];
  }

  #unlist(group: Group): void {
    if (group.listed === undefined) return;
    this.#listedCount -= group.listed.workloads.length;
    group.listed = undefined;
    this.#listed.delete(group);
  }
}

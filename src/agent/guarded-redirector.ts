import type { Redirector } from "#enrolment";
import { guardPort } from "#enrolment";
import { listAddresses, listLinks, type Netns } from "#linux";
import type { LocalPod } from "#wireguard";

/** The kernel's set of this node's enrolled pods. */
export interface LocalPodSet {
  changeLocal(pod: LocalPod, left?: boolean): Promise<void>;
  setLocal(pods: readonly LocalPod[]): Promise<void>;
}

/**
 * Redirection that tells the node's rules which pods are enrolled: those whose port 15008 nothing but the proxy uses. The pod is guarded
 * first, then known, then redirected, and backwards; a connection that comes in between is encrypted twice, never not at all.
 */
export class GuardedRedirector implements Redirector {
  readonly #inner: Redirector;
  readonly #set: LocalPodSet;
  readonly #node: Netns;
  readonly #found = new Map<string, LocalPod>();

  /** `node`: the network namespace of the node, where the other ends of the pods' links are. */
  constructor(inner: Redirector, parts: { readonly set: LocalPodSet; readonly node: Netns }) {
    this.#inner = inner;
    this.#set = parts.set;
    this.#node = parts.node;
  }

  async install(...[netns, options]: Parameters<Redirector["install"]>): Promise<void> {
    await this.#join(netns);
    await this.#inner.install(netns, options);
  }

  async keep(netns: Netns): Promise<void> {
    await this.#inner.keep(netns);
    await this.#leave(netns);
  }

  async remove(netns: Netns): Promise<void> {
    await this.#leave(netns);
    await this.#inner.remove(netns);
  }

  async read(netns: Netns): ReturnType<Redirector["read"]> {
    const state = await this.#inner.read(netns);
    if (state === "capturing" && !this.#found.has(netns.key)) await this.#join(netns);
    return state;
  }

  countRedirected(netns: Netns): number {
    return this.#inner.countRedirected(netns);
  }

  /** Those that were found are all there are: what an earlier agent has left of others goes. */
  synced(): Promise<void> {
    return this.#set.setLocal([...this.#found.values()]);
  }

  async #join(netns: Netns): Promise<void> {
    await guardPort(netns);
    const pod = localPod(this.#node, netns);
    if (pod === undefined) return;
    this.#found.set(netns.key, pod);
    await this.#set.changeLocal(pod);
  }

  async #leave(netns: Netns): Promise<void> {
    const pod = this.#found.get(netns.key) ?? localPod(this.#node, netns);
    this.#found.delete(netns.key);
    if (pod !== undefined) await this.#set.changeLocal(pod, true);
  }
}

const LOOPBACK = 1;

/** A pod as its node sees it; undefined when it has no veth to the node: what it sends is not told apart then. */
function localPod(node: Netns, netns: Netns): LocalPod | undefined {
  const links = listLinks(netns).filter(({ index }) => index !== LOOPBACK);
  for (const host of listLinks(node)) {
    const own = links.find(({ index, tiedTo }) => tiedTo === host.index && host.tiedTo === index);
    if (own === undefined) continue;
    const addresses = listAddresses(netns).filter(({ index, ip }) => index === own.index && !/^fe[89ab]/.test(ip));
    return { link: host.index, addresses: addresses.map(({ ip }) => ip) };
  }
  return undefined;
}

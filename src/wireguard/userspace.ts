import { spawn } from "node:child_process";
import { mkdirSync, rmSync } from "node:fs";
import { sleep, type Clock } from "#base/clock";
import { messageOf } from "#base/errors";
import { findLink, deleteLink, inNetns, makePersistentTun, runCommand, type Netns } from "#linux";
import type { Backend, DeviceChange, DeviceState } from "./backend.ts";
import { wireguardError } from "./errors.ts";
import { askUapi, holdUapi } from "./uapi-client.ts";
import { checkSetAnswer, decodeDevice, encodeSet, GET_REQUEST } from "./uapi.ts";

/** Where `wireguard-go` makes its sockets, and `wg` looks for them. */
export const SOCKET_FOLDER = "/run/wireguard";

/** What a back end in user space is made of. */
export interface UserspaceOptions {
  /** `wireguard-go`. */
  readonly program: string;
  /** As it tells: {@link findUserspaceVersion}. */
  readonly version: string;
  /** Whose devices are made. */
  readonly netns: Netns;
  /** Default {@link SOCKET_FOLDER}; another one where several nodes share a file system. */
  readonly socketFolder?: string;
  readonly clock: Clock;
}

const START_MS = 30_000;
const START_POLL_MS = 10;

/**
 * The program sees its folder of sockets where it looks for it, leaves no core file, which would hold keys, and inherits nothing of the
 * agent: neither marks by which a container's processes are ended, nor its output, which would end it when it broke.
 */
const START = `
ulimit -c 0
if [ "$1" != ${SOCKET_FOLDER} ]; then
  mkdir -p ${SOCKET_FOLDER}
  mount -n --bind "$1" ${SOCKET_FOLDER}
fi
shift
exec "$@"
`;

/** What `wireguard-go --version` says; undefined when the program cannot be run, or is another one. */
export async function findUserspaceVersion(program: string): Promise<string | undefined> {
  const outcome = await runCommand({ program, args: ["--version"] }).catch(() => undefined); // not there: not found
  return /^wireguard-go v?(\S+)/.exec(outcome?.stdout ?? "")?.[1];
}

/**
 * Devices that `wireguard-go` runs, one process each. A process outlives the agent that has started it; the next one finds it by its
 * socket. When it ends, its interface and the routes to it stay: nothing goes another way, in clear, until it is started again.
 */
export class UserspaceBackend implements Backend {
  readonly kind = "userspace";
  readonly version: string;
  readonly #options: UserspaceOptions;
  readonly #folder: string;
  /** Connections that tell of an end. */
  readonly #held = new Map<string, () => void>();

  constructor(options: UserspaceOptions) {
    this.#options = options;
    this.version = options.version;
    this.#folder = options.socketFolder ?? SOCKET_FOLDER;
  }

  async open(device: string, onGone: () => void): Promise<"made" | "found"> {
    const { netns } = this.#options;
    this.#letGo(device);
    const gone = (): void => {
      this.#held.delete(device);
      onGone();
    };
    const found = await this.#find(device, gone);
    this.#held.set(device, found ?? (await this.#start(device, gone)));
    if (found === undefined) return "made";
    if (findLink(netns, device) !== undefined) return "found";
    await this.remove(device); // it has lost its interface, and will end by itself at some time
    throw wireguardError("WIREGUARD_BACKEND", `the process of ${device} has no interface`, { details: { device } });
  }

  async configure(device: string, change: DeviceChange): Promise<void> {
    const request = encodeSet(change);
    try {
      checkSetAnswer(await askUapi(this.#socket(device), request, this.#options.clock));
    } finally {
      request.fill(0);
    }
  }

  async read(device: string): Promise<DeviceState> {
    const answer = await askUapi(this.#socket(device), Buffer.from(GET_REQUEST), this.#options.clock);
    try {
      return decodeDevice(answer);
    } finally {
      answer.fill(0);
    }
  }

  remove(device: string): Promise<void> {
    this.#letGo(device);
    deleteLink(this.#options.netns, device); // its process ends with it
    rmSync(this.#socket(device), { force: true });
    return Promise.resolve();
  }

  close(): void {
    for (const device of this.#held.keys()) this.#letGo(device);
  }

  /** Connects to a process that answers; undefined when there is none. One that has just been killed still accepts for a moment. */
  async #find(device: string, gone: () => void): Promise<(() => void) | undefined> {
    try {
      await this.read(device);
      return await holdUapi(this.#socket(device), gone);
    } catch {
      return undefined;
    }
  }

  #start(device: string, gone: () => void): Promise<() => void> {
    const { netns } = this.#options;
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    rmSync(this.#socket(device), { force: true });
    if (findLink(netns, device) === undefined) makePersistentTun(netns, device);
    const hold = (): Promise<() => void> => holdUapi(this.#socket(device), gone);
    return startProgram(this.#options, { device, socketFolder: this.#folder, hold });
  }

  #letGo(device: string): void {
    this.#held.get(device)?.();
    this.#held.delete(device);
  }

  #socket(device: string): string {
    return `${this.#folder}/${device}.sock`;
  }
}

interface Start {
  readonly device: string;
  readonly socketFolder: string;
  readonly hold: () => Promise<() => void>;
}

async function startProgram({ program, netns, clock }: UserspaceOptions, start: Start): Promise<() => void> {
  const { device, socketFolder, hold } = start;
  const words = ["sh", "-ec", START, "sh", socketFolder, program, "-f", device];
  const child = inNetns(netns, () =>
    spawn("unshare", ["--mount", ...words], {
      stdio: "ignore",
      detached: true,
      cwd: "/",
      env: { PATH: process.env["PATH"], LOG_LEVEL: "silent" },
    }),
  );
  let ended: string | undefined;
  child.once("error", (error) => (ended = messageOf(error)));
  child.once("exit", (code, signal) => (ended = `it ended with ${signal ?? `exit code ${code}`}`));
  child.unref();
  const endMs = clock.monotonic() + START_MS;
  for (;;) {
    try {
      return await hold();
    } catch (cause) {
      const why = ended ?? (clock.monotonic() > endMs ? `it did not answer in ${START_MS / 1000} s` : undefined);
      if (why !== undefined) {
        throw wireguardError("WIREGUARD_BACKEND", `${program} did not start for ${device}: ${why}`, { cause });
      }
    }
    await sleep(clock, START_POLL_MS);
  }
}

/**
 * Collects the garbage of all threads of a Node process, and prints how many KiB each thread's heap holds then, as JSON.
 *
 *     heap.ts PID        run in the network namespace of the process: its debugger opens on 127.0.0.1:9229, and is closed again
 */
import { setTimeout as wait } from "node:timers/promises";

const INSPECTOR = "http://127.0.0.1:9229/json/list";
const TRIES = 40;
const PAUSE_MS = 250;

/** What the debugger says, as far as this program reads it. */
interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly params?: { readonly sessionId: string; readonly message: string };
  readonly result?: { readonly result?: { readonly value?: number } };
}

/** A signal opens the debugger of a running process. */
async function openDebugger(pid: number): Promise<string> {
  for (let tries = 0; tries < TRIES; tries++) {
    try {
      const [first] = (await (await fetch(INSPECTOR)).json()) as { webSocketDebuggerUrl: string }[]; // Node's own page
      if (first !== undefined) return first.webSocketDebuggerUrl;
    } catch {
      process.kill(pid, "SIGUSR1"); // again: the port may have been another process's still
    }
    await wait(PAUSE_MS);
  }
  throw new Error(`process ${pid} opens no debugger`);
}

/** The debugger of the main thread, and through it those of its workers. */
class Debugger {
  readonly #socket: WebSocket;
  readonly #answers = new Map<number, (message: Message) => void>();
  readonly workers: string[] = [];
  #last = 0;

  constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => {
      this.#take(JSON.parse(String(data)) as Message);
    });
  }

  /** Asks a thread: a worker, or the main thread where there is no name. */
  async ask(worker: string | undefined, method: string, params: object = {}): Promise<Message> {
    const id = ++this.#last;
    const { promise, resolve } = Promise.withResolvers<Message>();
    this.#answers.set(id, resolve);
    const text = JSON.stringify({ id, method, params });
    const envelope = { sessionId: worker, message: text };
    if (worker === undefined) this.#socket.send(text);
    else
      this.#socket.send(
        JSON.stringify({ id: ++this.#last, method: "NodeWorker.sendMessageToWorker", params: envelope }),
      );
    return promise;
  }

  #take({ id, method, params, ...rest }: Message): void {
    if (id !== undefined) this.#answers.get(id)?.(rest);
    else if (params === undefined) return;
    else if (method === "NodeWorker.attachedToWorker") this.workers.push(params.sessionId);
    else if (method === "NodeWorker.receivedMessageFromWorker") this.#take(JSON.parse(params.message) as Message);
  }
}

const socket = new WebSocket(await openDebugger(Number(process.argv[2])));
await new Promise((resolve) => {
  socket.addEventListener("open", resolve);
});
const threads = new Debugger(socket);
await threads.ask(undefined, "NodeWorker.enable", { waitForDebuggerOnStart: false });
await wait(PAUSE_MS); // the workers are told of one by one
const used: Record<string, number> = {};
for (const worker of [undefined, ...threads.workers]) {
  await threads.ask(worker, "HeapProfiler.collectGarbage");
  const expression = `process.getBuiltinModule("node:v8").getHeapStatistics().used_heap_size`;
  const { result } = await threads.ask(worker, "Runtime.evaluate", { expression, returnByValue: true });
  used[worker === undefined ? "main" : `data ${worker}`] = Math.round((result?.result?.value ?? Number.NaN) / 1024);
}
process.stdout.write(`${JSON.stringify(used)}\n`);
// Others of this namespace need the port next.
const closing = `setTimeout(() => process.getBuiltinModule("node:inspector").close(), ${PAUSE_MS}) && 0`;
await threads.ask(undefined, "Runtime.evaluate", { expression: closing });
socket.close();
for (let tries = 0; tries < TRIES; tries++) {
  await wait(PAUSE_MS);
  await fetch(INSPECTOR).catch(() => process.exit(0));
}
process.exit(0);

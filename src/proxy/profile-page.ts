import type { Clock } from "#base/clock";
import { textPage, type Page, type PageRequest } from "#rpc";
import { encodePprof, type ThreadProfile } from "./pprof.ts";
import type { ProfileRequest } from "./profiler.ts";

/** What the pages of profiles need. */
export interface ProfileParts {
  /** Records on all threads at once. */
  readonly record: (request: ProfileRequest, signal: AbortSignal) => Promise<readonly ThreadProfile[]>;
  readonly clock: Clock;
}

/** Bytes of allocation between two samples: V8's own default. */
const HEAP_INTERVAL = 32_768;

/**
 * `/debug/pprof/profile` and `/debug/pprof/heap`: gzipped profiles for `go tool pprof`, with upstream's parameters
 * `seconds` (1 to 300, default 10) and `frequency` (1 to 1000 Hz, default 100). `thread=main` shows one thread;
 * with `format=v8` as the JSON that Chromium's tools open. One recording at a time.
 */
export class ProfilePages {
  readonly #parts: ProfileParts;
  #isRecording = false;

  constructor(parts: ProfileParts) {
    this.#parts = parts;
  }

  /** Records and answers; what the parameters ask for wrongly is a 400, a second recording a 409. */
  async show(kind: ThreadProfile["kind"], { query, signal }: PageRequest): Promise<Page> {
    const seconds = wholeNumber(query.get("seconds") ?? "10", 300);
    if (seconds === undefined) return textPage(400, "invalid seconds value; expected 1-300");
    const frequency = wholeNumber(query.get("frequency") ?? "100", 1_000);
    if (frequency === undefined) return textPage(400, "invalid frequency value; expected 1-1000");
    if (this.#isRecording) return textPage(409, "a profile is being recorded: try again when it is done");
    const interval = kind === "heap" ? HEAP_INTERVAL : Math.round(1e6 / frequency);
    const { clock } = this.#parts;
    const startMs = clock.now();
    this.#isRecording = true;
    try {
      const all = await this.#parts.record({ kind, durationMs: seconds * 1_000, interval }, signal);
      const thread = query.get("thread");
      const chosen = thread === null ? all : all.filter((one) => one.thread === thread);
      const [first] = chosen;
      if (first === undefined) return textPage(400, `there is ${all.map((one) => one.thread).join(", ")}`);
      if (query.get("format") === "v8") {
        return { status: 200, contentType: "application/json", body: JSON.stringify(first.profile) };
      }
      const body = await encodePprof(chosen, { startMs, durationMs: seconds * 1_000, interval });
      return { status: 200, contentType: "application/octet-stream", body };
    } finally {
      this.#isRecording = false;
    }
  }
}

function wholeNumber(text: string, most: number): number | undefined {
  const number = /^\d{1,4}$/.test(text) ? Number(text) : 0;
  return number >= 1 && number <= most ? number : undefined;
}

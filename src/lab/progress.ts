import type { Clock } from "#base/clock";

/** Tells the user what is being done. */
export interface Progress {
  /** Runs one step under a name; shows it, and how long it took. Steps may overlap. */
  step<T>(name: string, work: () => Promise<T>): Promise<T>;
  /** Says something beside the steps. */
  readonly note: (text: string) => void;
}

/** Says nothing. */
export const silentProgress: Progress = { step: (_, work) => work(), note: () => {} };

/**
 * Progress on standard error: one line for each step that has been done. On a terminal a further line shows the steps
 * that are being done now.
 */
export function lineProgress(options: { clock: Clock; interactive: boolean; write: (text: string) => void }): Progress {
  const { clock, interactive, write } = options;
  const running = new Set<string>();
  const redraw = (line: string): void => {
    if (!interactive) {
      write(line);
      return;
    }
    const now = running.size === 0 ? "" : `        … ${[...running].join(", ")}`.slice(0, 100);
    write(`\r\u001b[K${line}${now}`);
  };
  return {
    async step(name, work) {
      const startedMs = clock.monotonic();
      running.add(name);
      if (interactive) redraw("");
      let mark = "failed";
      try {
        const result = await work();
        mark = "";
        return result;
      } finally {
        running.delete(name);
        const seconds = ((clock.monotonic() - startedMs) / 1000).toFixed(1);
        redraw(`${seconds.padStart(5)} s  ${name}${mark === "" ? "" : `: ${mark}`}\n`);
      }
    },
    note(text) {
      redraw(`         ${text}\n`);
    },
  };
}

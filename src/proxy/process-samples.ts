import { readdir, readFile } from "node:fs/promises";
import type { ThreadSamples } from "./looks.ts";

/** What the kernel says of this process, under the names that Prometheus' clients use. Rejects where there is no /proc. */
export async function processSamples(): Promise<ThreadSamples> {
  const [open, limits] = await Promise.all([readdir("/proc/self/fd"), readFile("/proc/self/limits", "utf8")]);
  const most = /^Max open files\s+(\d+)/m.exec(limits)?.[1];
  const { user, system } = process.cpuUsage();
  const plain = (name: string, value: number): ThreadSamples[number] => ({ name, labels: {}, value });
  return [
    plain("process_open_fds", open.length),
    plain("process_max_fds", most === undefined ? Infinity : Number(most)),
    plain("process_cpu_seconds_total", (user + system) / 1e6),
    plain("process_resident_memory_bytes", process.memoryUsage.rss()),
  ];
}
